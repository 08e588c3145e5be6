"""A JSON schema as a whole: its references, several schemas in one, and schemas that exclude each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any
from urllib.parse import unquote

from yarn_gguf.run.grammar.keywords import (
    Schema,
    constraints,
    list_in,
    refusal,
    type_of,
    types_in,
)

# of two values for a keyword, the one that holds where both do
_TIGHTER: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum"), max),
    **dict.fromkeys(("maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum"), min),
}
_KINDS = frozenset(("object", "array", "string", "number", "boolean", "null"))


class Document:
    """A schema that its parts refer to."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def target(self, pointer: Any, place: str) -> Schema:
        """Return the schema that a $ref at `place` names. Raises YarnGGUFError."""
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise refusal(f"{place}/$ref", f"references go to parts of this schema (#/...), got {pointer!r}")
        found = self._schema
        for step in pointer.split("/")[1:]:
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(name)] if isinstance(found, list) else found[name]
            except (KeyError, IndexError, ValueError, TypeError):
                raise refusal(f"{place}/$ref", f"the schema has no {pointer}") from None
        return found

    def parts(self, schema: Schema, place: str, through: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """Yield schemas that together are `schema`, without $ref and allOf.

        through: the references that led here.
        """
        keywords = constraints(schema, place)
        if others := {key: value for key, value in keywords.items() if key not in ("$ref", "allOf")}:
            yield others
        if "$ref" in keywords:
            pointer = keywords["$ref"]
            target = self.target(pointer, place)
            yield from self.parts(target, pointer, followed(pointer, place, through))
        if "allOf" in keywords:
            for i, each in enumerate(list_in(keywords, "allOf", place)):
                yield from self.parts(each, f"{place}/allOf/{i}", through)

    def merged(self, schema: Schema, place: str, through: tuple[str, ...]) -> dict[str, Any]:
        """Return one schema without $ref and allOf. Raises YarnGGUFError if its parts cannot be one."""
        return reduce(lambda a, b: _merge(a, b, place), self.parts(schema, place, through), {})

    def may_overlap(self, a: dict[str, Any], b: dict[str, Any], place: str) -> bool:
        """Return whether a value may obey both schemas, which are merged; True if that is not known."""
        common = self._kinds(a, place) & self._kinds(b, place)
        if not common or not _meet(self._values(a, place), self._values(b, place)):
            return False
        if common != {"object"}:
            return True
        fixed, others = self._fixed(a, place), self._fixed(b, place)
        return all(_meet(fixed[name], others[name]) for name in fixed.keys() & others.keys())

    def _kinds(self, schema: dict[str, Any], place: str) -> frozenset[str]:
        """Return the types of the values that may obey a merged schema."""
        kinds = _KINDS
        if (values := self._values(schema, place)) is not None:
            kinds = frozenset(type_of(json.loads(each)) for each in values)
        for key in schema.keys() & {"anyOf", "oneOf"}:
            each = [self._kinds(self.merged(part, place, ()), place) for part in list_in(schema, key, place)]
            kinds &= frozenset().union(*each)
        if "type" in schema:
            kinds &= {"number" if name == "integer" else name for name in types_in(schema, place)}
        return kinds

    def _values(self, schema: dict[str, Any], place: str) -> set[str] | None:
        """Return the values that a merged schema lists, as JSON; None if it lists none."""
        if "const" in schema:
            return {_canonical(schema["const"])}
        return {_canonical(each) for each in list_in(schema, "enum", place)} if "enum" in schema else None

    def _fixed(self, schema: dict[str, Any], place: str) -> dict[str, set[str]]:
        """Return the listed values of required properties."""
        properties, required = schema.get("properties", {}), schema.get("required", [])
        found = {}
        for name in required:
            if name in properties:
                values = self._values(self.merged(properties[name], place, ()), place)
                if values is not None:
                    found[name] = values
        return found


def followed(pointer: str, place: str, through: tuple[str, ...]) -> tuple[str, ...]:
    """Return the references that led to `pointer`, with it. Raises YarnGGUFError if it goes in a circle."""
    if pointer in through:
        raise refusal(f"{place}/$ref", f"{pointer} refers to itself, with nothing in between")
    return (*through, pointer)


# ----------------------------------------------------------------------------------------------


def _merge(a: dict[str, Any], b: dict[str, Any], place: str) -> dict[str, Any]:
    _require_no_interplay(a, b, place)
    _require_no_interplay(b, a, place)
    found = a | b
    for key in a.keys() & b.keys():
        found[key] = a[key] if a[key] == b[key] else _both(key, a[key], b[key], place)
    return found


def _both(key: str, a: Any, b: Any, place: str) -> Any:
    if key in _TIGHTER:
        return _TIGHTER[key](a, b)
    if key == "required":
        return [*a, *(each for each in b if each not in a)]
    if key == "properties":
        return a | b | {name: {"allOf": [a[name], b[name]]} for name in a if name in b and a[name] != b[name]}
    if key in ("items", "additionalProperties") and not isinstance(a, list) and not isinstance(b, list):
        return {"allOf": [a, b]}
    if key == "type":
        common = _common_types(types_in({"type": a}, place), types_in({"type": b}, place))
        if common:
            return common
    raise refusal(place, f"{key} has two values, {a!r} and {b!r}: write one schema that holds for both")


def _common_types(a: list[str], b: list[str]) -> list[str]:
    return [
        name
        for name in dict.fromkeys([*a, *b])
        if all(name in each or (name == "integer" and "number" in each) for each in (a, b))
    ]


def _require_no_interplay(a: dict[str, Any], b: dict[str, Any], place: str) -> None:
    """Refuse keywords whose meaning depends on others of the same schema, if `b` has more of these."""
    if a.get("additionalProperties", True) not in (True, {}):
        more = b.get("properties", {}).keys() - a.get("properties", {}).keys()
        if more:
            raise refusal(
                place, f"additionalProperties of one part excludes {', '.join(sorted(more))} of another"
            )
    if "items" in a and "prefixItems" in b and a.get("prefixItems") != b["prefixItems"]:
        raise refusal(place, "items and prefixItems are in two parts: write them in one")


def _meet(a: set[str] | None, b: set[str] | None) -> bool:
    return a is None or b is None or bool(a & b)


def _canonical(value: Any) -> str:
    """Return JSON that is equal for equal values: 1 and 1.0 are."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value
