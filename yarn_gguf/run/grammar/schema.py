"""A JSON schema as a grammar: every text of the grammar obeys the schema, or the schema is refused.

The grammar may allow fewer texts than the schema. Keys come in one order, and numbers have few digits. Keys
that `properties` does not name come only where `additionalProperties` is given.
"""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

from yarn_gguf.run.grammar.document import Document, followed
from yarn_gguf.run.grammar.formats import FORMATS
from yarn_gguf.run.grammar.keys import other_key
from yarn_gguf.run.grammar.keywords import (
    Schema,
    constraints,
    count_in,
    is_of,
    list_in,
    of_type,
    refusal,
    types_in,
)
from yarn_gguf.run.grammar.numbers import NUMBER, Bounds, integers, numbers
from yarn_gguf.run.grammar.pattern import pattern_body
from yarn_gguf.run.grammar.rules import CHAR, MOST_REPETITIONS, ROOT, Rules, json_literal


def grammar_of(schema: Schema) -> str:
    """Return the grammar of a JSON schema. Raises YarnGGUFError, naming the part that cannot be obeyed."""
    try:
        return _Converter(schema).grammar()
    except RecursionError:
        raise refusal("#", "it is nested too deeply") from None


class _Converter:
    """Makes a rule for each part of a schema. A part's place is a JSON pointer."""

    def __init__(self, schema: Schema) -> None:
        self._document = Document(schema)
        self._rules = Rules()
        self._space = self._rules.add("space", '" "?')
        self._named: dict[str, str] = {}  # rules of references, and of merged schemas by their JSON

    def grammar(self) -> str:
        body = self._reference("#", "", ())
        self._rules.define(ROOT, body)
        return self._rules.text()

    def _value(self, schema: Schema, place: str, through: tuple[str, ...] = ()) -> str:
        """Return the rule of a schema. through: the references that led here, with nothing in between."""
        keywords = constraints(schema, place)
        if not keywords:
            return self._anything()
        if keywords.keys() == {"$ref"}:
            return self._reference(keywords["$ref"], place, through)
        if keywords.keys() == {"allOf"} and len(list_in(keywords, "allOf", place)) == 1:
            return self._value(keywords["allOf"][0], f"{place}/allOf/0", through)
        if keywords.keys() & {"$ref", "allOf"}:
            return self._merged(self._document.merged(schema, place, through), place, through)
        for key in ("oneOf", "anyOf"):
            if key in keywords:
                return self._union(key, keywords, place, through)
        if "const" in keywords or "enum" in keywords:
            return self._listed(keywords, place)
        types = types_in(keywords, place)
        return self._add(place, " | ".join(self._of_type(name, keywords, place) for name in types))

    def _add(self, place: str, body: str) -> str:
        return self._rules.add(place.rpartition("/")[2], body)

    def _reference(self, pointer: Any, place: str, through: tuple[str, ...]) -> str:
        target = self._document.target(pointer, place)
        through = followed(pointer, place, through)
        if pointer not in self._named:
            self._named[pointer] = self._rules.new_name(pointer.rpartition("/")[2])
            self._rules.define(self._named[pointer], self._value(target, pointer, through))
        return self._named[pointer]

    def _merged(self, schema: dict[str, Any], place: str, through: tuple[str, ...]) -> str:
        key = json.dumps(schema, sort_keys=True)
        if key not in self._named:
            self._named[key] = self._rules.new_name(place.rpartition("/")[2])
            self._rules.define(self._named[key], self._value(schema, place, through))
        return self._named[key]

    def _union(self, key: str, keywords: dict[str, Any], place: str, through: tuple[str, ...]) -> str:
        others = {name: value for name, value in keywords.items() if name != key}
        parts = list_in(keywords, key, place)
        if key == "oneOf":
            self._require_disjoint(parts, place)
        if others:
            parts = [{"allOf": [others, each]} for each in parts]
        rules = [self._value(each, f"{place}/{key}/{i}", through) for i, each in enumerate(parts)]
        return self._add(place, " | ".join(rules))

    def _require_disjoint(self, parts: list[Schema], place: str) -> None:
        merged = [self._document.merged(each, f"{place}/oneOf/{i}", ()) for i, each in enumerate(parts)]
        for i, a in enumerate(merged):
            for j, b in enumerate(merged[:i]):
                if self._document.may_overlap(a, b, place):
                    raise refusal(
                        f"{place}/oneOf",
                        f"a value may obey both {j} and {i}: use anyOf, or a const that differs",
                    )

    def _listed(self, keywords: dict[str, Any], place: str) -> str:
        values = [keywords["const"]] if "const" in keywords else list_in(keywords, "enum", place)
        if "const" in keywords and "enum" in keywords:
            values = [each for each in values if each in keywords["enum"]]
        if more := sorted(keywords.keys() - {"const", "enum", "type"}):
            raise refusal(place, f"enum or const beside {', '.join(more)}: list what is allowed alone")
        if "type" in keywords:
            values = [each for each in values if is_of(each, types_in(keywords, place))]
        if not values:
            raise refusal(place, "no value is allowed: enum, const and type exclude one another")
        try:
            return self._add(place, " | ".join(json_literal(each) for each in values))
        except ValueError as error:
            raise refusal(place, f"a value that is no JSON: {error}") from None

    def _of_type(self, name: str, keywords: dict[str, Any], place: str) -> str:
        if name == "boolean":
            return '"true" | "false"'
        if name == "null":
            return '"null"'
        keywords = of_type(name, keywords, place)
        make = {"object": self._object, "array": self._array, "string": self._string}.get(name)
        return make(keywords, place) if make else self._number(name, keywords, place)

    def _anything(self) -> str:
        if "any" not in self._named:
            self._named["any"] = name = self._rules.new_name("value")
            parts = [self._object({}, "#"), self._array({}, "#"), self._string({}, "#"), NUMBER]
            self._rules.define(name, " | ".join([*parts, '"true"', '"false"', '"null"']))
        return self._named["any"]

    # ---- strings and numbers -------------------------------------------------------------------

    @property
    def _char(self) -> str:
        return self._rules.add("char", CHAR)

    def _string(self, keywords: dict[str, Any], place: str) -> str:
        body = self._text(keywords, place)
        return f'"\\"" {self._rules.add("text", body)} "\\""'

    def _text(self, keywords: dict[str, Any], place: str) -> str:
        """Return the body of a string's text between its quotes."""
        lengths = keywords.keys() & {"minLength", "maxLength"}
        if len(keywords) - len(lengths) + bool(lengths) > 1:
            raise refusal(place, f"{' and '.join(sorted(keywords))} together: give one of them")
        if lengths:
            low, high = self._counts(keywords, "minLength", "maxLength", place)
            return f"{self._char}{{{low},{'' if high is None else high}}}"
        if "pattern" in keywords:
            return self._pattern(keywords["pattern"], f"{place}/pattern")
        if "format" in keywords:
            found = FORMATS.get(str(keywords["format"]))
            if found is None:
                known = ", ".join(FORMATS)
                message = (
                    f"{keywords['format']!r} is not obeyed ({known} are): leave it out, or give a pattern"
                )
                raise refusal(f"{place}/format", message)
            return self._pattern(found, f"{place}/format")
        return f"{self._char}*"

    def _pattern(self, pattern: Any, place: str) -> str:
        if not isinstance(pattern, str):
            raise refusal(place, f"a pattern is a string, got {pattern!r}")
        try:
            return pattern_body(pattern, self._rules, self._char)
        except ValueError as error:
            raise refusal(place, str(error)) from None

    def _counts(self, keywords: dict[str, Any], low: str, high: str, place: str) -> tuple[int, int | None]:
        least = count_in(keywords, low, place, 0) or 0
        most = count_in(keywords, high, place, None)
        for name, value in ((low, least), (high, most or 0)):
            if value > MOST_REPETITIONS:
                raise refusal(
                    f"{place}/{name}", f"at most {MOST_REPETITIONS:,} can be counted, got {value:,}"
                )
        if most is not None and most < least:
            raise refusal(place, f"{low} {least} is above {high} {most}")
        return least, most

    def _number(self, name: str, keywords: dict[str, Any], place: str) -> str:
        if keywords.get("multipleOf", 1) != 1:
            message = "multiples are not obeyed, but those of 1: leave it out, or list the values in enum"
            raise refusal(f"{place}/multipleOf", message)
        is_whole = name == "integer" or "multipleOf" in keywords
        low, excludes_low = self._bound(keywords, "minimum", "exclusiveMinimum", place, max)
        high, excludes_high = self._bound(keywords, "maximum", "exclusiveMaximum", place, min)
        bounds = Bounds(low, high, excludes_low, excludes_high)
        body = integers(bounds) if is_whole else numbers(bounds)
        if body is None:
            raise refusal(place, "no number of few digits is within the bounds")
        return body

    def _bound(
        self, keywords: dict[str, Any], key: str, strict: str, place: str, tighter: Any
    ) -> tuple[Fraction | None, bool]:
        """Return a bound, and whether it is excluded."""
        found = {}
        for name in (key, strict):
            if name in keywords:
                value = keywords[name]
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise refusal(f"{place}/{name}", f"a bound is a number, got {value!r}")
                found[name] = Fraction(str(value))
        if not found:
            return None, False
        bound = tighter(found.values())
        return bound, found.get(strict) == bound

    # ---- arrays and objects --------------------------------------------------------------------

    def _array(self, keywords: dict[str, Any], place: str) -> str:
        first, rest = self._items(keywords, place)
        least, most = self._counts(keywords, "minItems", "maxItems", place)
        first = first[:most]
        items = [self._value(each, f"{place}/prefixItems/{i}") for i, each in enumerate(first)]
        if rest is False or (first and least <= len(first) and "items" not in keywords):
            if least > len(first):
                raise refusal(f"{place}/minItems", f"only {len(first)} items are allowed, got {least}")
            return self._brackets(items, None)
        low = max(0, least - len(first))
        high = None if most is None else most - len(first)
        if high == 0:
            return self._brackets(items, None)
        more = self._value(rest, f"{place}/items")
        return self._brackets(items, (more, low, high))

    def _items(self, keywords: dict[str, Any], place: str) -> tuple[list[Schema], Schema]:
        """Return the schemas of the first items, and that of the others."""
        first, rest = keywords.get("prefixItems", []), keywords.get("items", True)
        if isinstance(rest, list):  # before 2020
            first, rest = rest, keywords.get("additionalItems", True)
        if not isinstance(first, list):
            raise refusal(f"{place}/prefixItems", f"this is a list, got {first!r}")
        return first, rest

    def _brackets(self, items: list[str], more: tuple[str, int, int | None] | None) -> str:
        """Return the body of an array. more: the rule of further items, with the bounds of their count."""
        comma = f'"," {self._space} '
        inner = f" {comma}".join(items)
        if more is not None:
            rule, low, high = more
            following = self._rules.add("following", f"{comma}{rule}")
            if items:
                inner += f" {_repeated(following, low, high)}"
            else:
                fewer = max(0, low - 1), None if high is None else high - 1
                inner = f"{rule} {_repeated(following, *fewer)}"
                inner = f"({inner})?" if low == 0 else inner
        return f'"[" {inner} "]"' if inner else '"[]"'

    def _object(self, keywords: dict[str, Any], place: str) -> str:
        properties = keywords.get("properties", {})
        required = keywords.get("required", [])
        if not isinstance(properties, dict):
            raise refusal(f"{place}/properties", f"these are schemas by name, got {properties!r}")
        if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
            raise refusal(f"{place}/required", f"these are names, got {required!r}")
        additional = keywords.get("additionalProperties", True)
        if not properties and not required:
            return self._map(keywords, additional, place)
        return self._members(keywords, properties, [*dict.fromkeys(required)], additional, place)

    def _map(self, keywords: dict[str, Any], additional: Schema, place: str) -> str:
        """Return the body of an object without named properties."""
        least, most = self._counts(keywords, "minProperties", "maxProperties", place)
        if least > 1:
            raise refusal(f"{place}/minProperties", "keys may come twice, so only 0 and 1 are obeyed")
        if additional is False:
            if least:
                raise refusal(f"{place}/minProperties", "additionalProperties excludes all properties")
            return '"{}"'
        key = self._string({}, place)
        if "propertyNames" in keywords:
            key = self._value(self._names(keywords["propertyNames"]), f"{place}/propertyNames")
        member = self._member(key, self._value(additional, f"{place}/additionalProperties"))
        if most == 0:
            return '"{}"'
        following = self._rules.add("following", f'"," {self._space} {member}')
        inner = f"{member} {_repeated(following, 0, None if most is None else most - 1)}"
        return f'"{{" {inner if least else f"({inner})?"} "}}"'

    @staticmethod
    def _names(schema: Schema) -> Schema:
        """Return the schema of a name, which is a string in any case."""
        return {"allOf": [{"type": "string"}, schema]}

    def _member(self, key: str, value: str) -> str:
        return self._rules.add("member", f'{key} ":" {self._space} {value}')

    def _members(
        self,
        keywords: dict[str, Any],
        properties: dict[str, Schema],
        required: list[str],
        additional: Schema,
        place: str,
    ) -> str:
        """Return the body of an object with named properties: the required ones, then the others."""
        if unnamed := [name for name in required if name not in properties and additional is False]:
            raise refusal(
                f"{place}/required", f"{unnamed[0]!r} is required, and additionalProperties excludes it"
            )
        named = {name: each for name, each in properties.items() if each is not False or name in required}
        named |= {name: additional for name in required if name not in properties}
        self._require_idle_counts(keywords, required, named, place)
        members = {
            name: self._member(
                self._key(name, place), self._value(each, f"{place}/properties/{_token(name)}")
            )
            for name, each in named.items()
        }
        optional = [members[name] for name in named if name not in required]
        others = None
        if "additionalProperties" in keywords and additional is not False:
            value = self._value(additional, f"{place}/additionalProperties")
            others = self._member(other_key([*properties, *required], self._rules), value)
        inner = self._sequence([members[name] for name in named if name in required], optional, others)
        return f'"{{" {inner} "}}"' if inner else '"{}"'

    def _require_idle_counts(
        self, keywords: dict[str, Any], required: list[str], named: dict[str, Schema], place: str
    ) -> None:
        """Refuse counts of properties that the names do not satisfy by themselves, and propertyNames."""
        least, most = self._counts(keywords, "minProperties", "maxProperties", place)
        if least > len(required):
            raise refusal(f"{place}/minProperties", f"{least} is above the {len(required)} that are required")
        if most is not None and (most < len(named) or "additionalProperties" in keywords):
            raise refusal(f"{place}/maxProperties", f"{most} is not obeyed beside properties: leave it out")
        if "propertyNames" in keywords:
            raise refusal(f"{place}/propertyNames", "not obeyed beside properties: leave it out")

    def _sequence(self, required: list[str], optional: list[str], others: str | None) -> str:
        """Return the members of an object: required ones, then any of the optional, then any others."""
        comma = f'"," {self._space} '
        tail = f"{self._rules.add('following', comma + others)}*" if others else ""
        beginnings = [f"{others} {tail}"] if others else []
        for member in reversed(optional):
            beginnings.insert(0, f"{member} {tail}")
            tail = self._rules.add("rest", f"({comma}{member})? {tail}")
        if required:
            return f" {comma}".join(required) + f" {tail}"
        return f"({' | '.join(beginnings)})?" if beginnings else ""

    def _key(self, name: str, place: str) -> str:
        try:
            return json_literal(name)
        except ValueError as error:
            raise refusal(f"{place}/properties", f"a name that is no JSON: {error}") from None


# ----------------------------------------------------------------------------------------------


def _repeated(rule: str, low: int, high: int | None) -> str:
    return "" if high == 0 else f"{rule}{{{low},{'' if high is None else high}}}"


def _token(name: str) -> str:
    """Return a name as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")
