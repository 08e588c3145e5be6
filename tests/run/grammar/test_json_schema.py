"""JSON schemas: answers obey them, by pydantic and by hand, or they are refused by the name of a part."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from grammars import answer, takes
from pydantic import BaseModel, ConfigDict, Field

from yarn_gguf import YarnGGUFError
from yarn_gguf.run.grammar.schema import grammar_of


class Node(BaseModel):
    weight: int = Field(ge=-5, lt=17)
    children: list[Node] = Field(default=[], max_length=2)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str = Field(min_length=1, max_length=4)


class Order(BaseModel):
    """Has every constraint that pydantic writes and a grammar can have."""

    model_config = ConfigDict(extra="forbid", strict=False)

    name: str = Field(min_length=2, max_length=5, title="A title", description="constrains nothing")
    code: str = Field(pattern=r'^[A-Z]{2}-\d{3}(x|"\w?")?$')
    at: datetime.datetime
    day: datetime.date
    time: datetime.time
    number: uuid.UUID
    address: ipaddress.IPv4Address
    colour: Literal["red", 'b"l\\u\ne', "grün"]
    price: float = Field(ge=0.5, le=12.25)
    ratio: Annotated[float, Field(gt=-1, lt=1)]
    note: str | None = Field(default=None, max_length=3)
    pair: tuple[int, Literal["a", "b"]]
    tree: Node
    scores: dict[Literal["x", "y"], int] = Field(min_length=1)
    flags: list[bool] = Field(min_length=2, max_length=3)
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[int, Field(ge=0, le=99)]]

    ab: Literal["value"]
    abc: Literal["other"] = "other"


@pytest.mark.parametrize("model", [Order, Open, Node])
def test_answers_are_what_pydantic_asks_for(llama, model):
    for seed in range(3):
        model.model_validate_json(json.dumps(answer(llama, model.model_json_schema(), seed)))


def test_a_value_that_pydantic_writes_is_a_text_of_the_grammar(llama):
    grammar = grammar_of(Order.model_json_schema())
    tree = Node(weight=16, children=[Node(weight=-5), Node(weight=0)])
    values: dict[str, Any] = {
        "name": 'é"\n',
        "code": 'AZ-907""',
        "at": datetime.datetime(2024, 1, 31, 23, 59, 59, tzinfo=datetime.UTC),
        "day": datetime.date(1999, 12, 31),
        "time": datetime.time(0, 0, 0, 120000, tzinfo=datetime.UTC),
        "number": uuid.UUID(int=2**127 - 1),
        "address": "255.0.10.199",
        "colour": 'b"l\\u\ne',
        "price": 12.25,
        "ratio": -0.9,
        "pair": (-40, "b"),
        "tree": tree,
        "scores": {"y": 1, "x": -3},
        "flags": [True, False],
        "pet": Dog(kind="dog", name="Rex"),
    }
    text = Order(**values).model_dump_json(exclude_unset=True)
    assert takes(llama, grammar, text)
    for wrong, instead in {
        "12.25": "12.26",
        "1999-12-31": "1999-11-31",
        "255.0": "256.0",
        "-3": "-3.5",
    }.items():
        assert wrong in text
        assert not takes(llama, grammar, text.replace(wrong, instead))


# ---- by hand: what pydantic does not write, or does not tell apart -----------------------------------

DEFINITIONS = {"$defs": {"a": {"x": {"type": "integer"}}, "b": {"x": {"type": "boolean"}}}}
SHORT = {"type": "string", "maxLength": 3}

OBEYED: dict[str, tuple[dict, Callable[[Any], bool]]] = {
    "references of one last name": (
        DEFINITIONS
        | {
            "properties": {"x": SHORT, "y": {"$ref": "#/$defs/a/x"}, "z": {"$ref": "#/$defs/b/x"}},
            "required": ["x", "y", "z"],
        },
        lambda v: type(v["x"]) is str and type(v["y"]) is int and type(v["z"]) is bool,
    ),
    "required without properties": (
        {"type": "object", "required": ["a"], "additionalProperties": {"enum": [1, 2]}},
        lambda v: v["a"] in (1, 2) and {*v.values()} <= {1, 2},
    ),
    "other properties": (
        {
            "properties": {"a": {"const": "x"}, "b": {"const": "y"}},
            "additionalProperties": {"type": "null"},
        },
        lambda v: all(value == {"a": "x", "b": "y"}.get(name) for name, value in v.items()),
    ),
    "types, each with its keywords": (
        {"type": ["string", "integer"], "minLength": 2, "maxLength": 4, "minimum": 5, "maximum": 1234},
        lambda v: 2 <= len(v) <= 4 if isinstance(v, str) else 5 <= v <= 1234,
    ),
    "exclusive bounds": (
        {"type": "number", "exclusiveMinimum": -1, "exclusiveMaximum": 1, "minimum": -0.5},
        lambda v: -0.5 <= v < 1,
    ),
    "a bound on one side": ({"type": "integer", "maximum": -98}, lambda v: v <= -98),
    "allOf": (
        {
            "allOf": [
                {"properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]},
                {"properties": {"a": {"type": "number", "maximum": 7}}, "type": "object"},
            ]
        },
        lambda v: 3 <= v["a"] <= 7 and type(v["a"]) is int,
    ),
    "anyOf beside other keywords": (
        {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}, "b": {"enum": [3]}},
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        lambda v: v.get("a") in (1, 2) or v.get("b") == 3,
    ),
    "$ref beside other keywords": (
        {"$defs": {"n": {"type": "integer", "minimum": 0}}, "$ref": "#/$defs/n", "maximum": 20},
        lambda v: 0 <= v <= 20,
    ),
    "enum of a type": ({"type": "integer", "enum": [True, 1, "1", 2.5, 3.0]}, lambda v: v in (1, 3)),
    "const": ({"const": {"a": [1, '\\\n"']}}, lambda v: v == {"a": [1, '\\\n"']}),
    "first items": (
        {"prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}, "minItems": 4, "maxItems": 5},
        lambda v: v[:4] == [1, 2, 3, 3] and 4 <= len(v) <= 5,
    ),
    "items of 2019": (
        {"items": [{"const": 1}, {"const": 2}], "additionalItems": False},
        lambda v: v == [1, 2][: len(v)],
    ),
    "a pattern without anchors": (
        {"type": "string", "pattern": "^a{1,3}$|^[^b-y\\s]{2}(?:q|\\.)*z$"},
        lambda v: re.search(r"^a{1,3}$|^[^b-y\s]{2}(?:q|\.)*z$", v),
    ),
    "a pattern of characters that JSON escapes": (
        {"type": "string", "pattern": '^["\\\\\\n\\t]{4}$'},
        lambda v: re.fullmatch(r'["\\\n\t]{4}', v),
    ),
    "a property's name with quotes": (
        {"properties": {'a"\n': {"const": 1}}, "required": ['a"\n'], "additionalProperties": False},
        lambda v: v == {'a"\n': 1},
    ),
    "a hostname": ({"format": "hostname"}, lambda v: re.fullmatch(r"[\w-]{1,63}(\.[\w-]{1,63})*", v)),
    "an e-mail address": ({"format": "email"}, lambda v: re.fullmatch(r"[\w.+-]+@([\w-]+\.)+\w+", v)),
    "oneOf of types": (
        {"oneOf": [{"type": "integer"}, {"type": "null"}]},
        lambda v: v is None or int(v) == v,
    ),
    "a recursion in a list": (
        {"type": "array", "maxItems": 1, "items": {"$ref": "#"}},
        lambda v: json.dumps(v).replace(" ", "") == "[" * (n := json.dumps(v).count("[")) + "]" * n,
    ),
}


@pytest.mark.parametrize("name", OBEYED)
def test_answers_obey_the_schema(llama, name):
    schema, is_obeyed = OBEYED[name]
    for seed in range(4):
        value = answer(llama, schema, seed)
        assert is_obeyed(value), value


def test_a_pattern_without_anchors_is_found_anywhere(llama):
    grammar = grammar_of({"type": "string", "pattern": "b[0-9]"})
    assert takes(llama, grammar, '"aab7zz"')
    assert not takes(llama, grammar, '"aab"')


def test_a_length_counts_characters_not_escapes(llama):
    grammar = grammar_of({"type": "string", "minLength": 2, "maxLength": 2})
    assert takes(llama, grammar, '"\\u00e9\\n"')
    assert not takes(llama, grammar, '"\\ud83d\\ude00"')  # one character
    assert not takes(llama, grammar, '"\n\n"')  # no JSON


def test_a_key_of_another_schema_cannot_be_written_by_an_escape(llama):
    grammar = grammar_of({"properties": {"ab": {"const": 1}}, "additionalProperties": {"const": 2}})
    assert takes(llama, grammar, '{"ab": 1, "a": 2, "abc": 2}')
    assert not takes(llama, grammar, '{"ab": 2}')
    assert not takes(llama, grammar, '{"\\u0061b": 2}')


@pytest.mark.parametrize(("low", "high"), [(0, 0), (-7, 13), (95, 1203), (-250, -17), (8, 8000), (100, 199)])
def test_exactly_the_integers_within_bounds_are_texts_of_the_grammar(low, high):
    """The grammar of integers is a regular expression, but for its spaces."""
    text = grammar_of({"type": "integer", "minimum": low, "maximum": high})
    body = re.search(r"::= (.*\[.*)", text)[1]
    expression = re.compile(body.replace('"', "").replace(" ", ""))
    found = [number for number in range(low - 300, high + 9000) if expression.fullmatch(str(number))]
    assert found == list(range(low, high + 1))


# ---- refusals ------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, str]] = {
    "not": ({"not": {"type": "string"}}, "#/not: this keyword is not obeyed"),
    "if": ({"if": {}, "then": {}}, "#/if: this keyword"),
    "then": ({"then": {"type": "string"}}, "#/then: this keyword"),
    "dependentRequired": (
        {"properties": {"a": {}}, "dependentRequired": {"a": ["b"]}},
        "#/dependentRequired",
    ),
    "dependentSchemas": (
        {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}},
        "#/dependentSchemas",
    ),
    "patternProperties": ({"type": "object", "patternProperties": {"^a": {}}}, "#/patternProperties: this"),
    "unevaluatedProperties": ({"type": "object", "unevaluatedProperties": False}, "#/unevaluatedProperties"),
    "propertyNames": (
        {"properties": {"a": {}}, "propertyNames": {"maxLength": 1}},
        "#/propertyNames: not obeyed beside properties",
    ),
    "minProperties": ({"type": "object", "minProperties": 2}, "#/minProperties: keys may come twice"),
    "minProperties of no properties": (
        {"additionalProperties": False, "minProperties": 1},
        "#/minProperties: additionalProperties excludes all",
    ),
    "maxProperties": ({"properties": {"a": {}, "b": {}}, "maxProperties": 1}, "#/maxProperties: 1 is not"),
    "uniqueItems": ({"items": {"items": {"uniqueItems": True}}}, "#/items/items/uniqueItems: this keyword"),
    "contains": ({"type": "array", "contains": {"const": 1}}, "#/contains: this keyword"),
    "multipleOf": ({"properties": {"a": {"type": "number", "multipleOf": 0.5}}}, "#/properties/a/multipleOf"),
    "format": ({"properties": {"a/b": {"format": "uri"}}}, "#/properties/a~1b/format: 'uri' is not obeyed"),
    "pattern and maxLength": (
        {"type": "string", "pattern": "^a*$", "maxLength": 3},
        "#: maxLength and pattern together",
    ),
    "an unknown keyword": ({"type": "string", "minLenght": 3}, "#/minLenght: this keyword is not obeyed"),
    "an unknown type": ({"items": {"type": "text"}}, "#/items/type: types are object.*got 'text'"),
    "a missing reference": ({"$ref": "#/$defs/a"}, r"#/\$ref: the schema has no #/\$defs/a"),
    "a reference elsewhere": ({"$ref": "https://example.org/a"}, "references go to parts of this schema"),
    "a circle": ({"anyOf": [{"$ref": "#"}]}, "# refers to itself"),
    "nothing": ({"properties": {"a": False}, "required": ["a"]}, "#/properties/a: no value is allowed"),
    "what is required and excluded": (
        {"required": ["a"], "additionalProperties": False},
        "#/required: 'a' is required, and additionalProperties excludes it",
    ),
    "bounds with nothing between": ({"type": "integer", "minimum": 3, "maximum": 2}, "no number"),
    "counts with nothing between": (
        {"type": "array", "minItems": 3, "maxItems": 2},
        "minItems 3 is above maxItems 2",
    ),
    "a large count": ({"type": "string", "maxLength": 5000}, "#/maxLength: at most 2,000 can be counted"),
    "oneOf that may overlap": (
        {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 0}]},
        "#/oneOf: a value may obey both 0 and 1",
    ),
    "allOf of schemas that exclude each other": (
        {"allOf": [{"type": "string"}, {"type": "null"}]},
        "#: type has two values",
    ),
    "allOf with a closed part": (
        {"allOf": [{"properties": {"a": {}}, "additionalProperties": False}, {"properties": {"b": {}}}]},
        "additionalProperties of one part excludes b of another",
    ),
    "enum beside other keywords": (
        {"enum": ["a", "bb"], "minLength": 2},
        "#: enum or const beside minLength",
    ),
    "an empty enum": ({"enum": []}, "#/enum: this is a list with something in it"),
    "no schema": ({"items": 3}, "#/items: a schema is an object or a boolean, got 3"),
    "half a character": ({"const": "\ud800"}, "a value that is no JSON"),
}
PATTERNS = {
    "(?=a)b": "a group of another kind",
    "(?i)a": "a group of another kind",
    r"(a)\1": r"\\1, which cannot be translated",
    r"\bword": r"\\b, which cannot be translated",
    r"\p{L}": r"\\p, which cannot be translated",
    "a$b": "a \\$ before the end",
    "a^b": r"'\^', which cannot be translated",
    "(^a|b)": r"'\^', which cannot be translated",
    "a(b": r"a \( without its \)",
    "a)b": r"a \) without its \(",
    "[a": r"a \[ without its \]",
    "[^]a]": "an empty class",
    "[z-a]": "a range that does not rise",
    "a{3,2}": "counts rise",
    "a{2,9999}": "at most 2,000",
    "a++": "a second quantifier",
    r"\x00": "a character that cannot stand in a JSON string",
    "*a": r"'\*', which cannot be translated",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_that_cannot_be_obeyed_is_refused_by_the_name_of_its_part(name):
    schema, message = REFUSED[name]
    with pytest.raises(YarnGGUFError, match=message):
        grammar_of(schema)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_that_cannot_be_translated_is_refused(pattern):
    with pytest.raises(YarnGGUFError, match=f"#/pattern: .*{PATTERNS[pattern]}"):
        grammar_of({"type": "string", "pattern": pattern})


def test_a_schema_that_is_nested_too_deeply_is_refused():
    schema: dict = {}
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(YarnGGUFError, match="nested too deeply"):
        grammar_of(schema)
