"""The keywords of JSON schemas: which constrain, and which are refused because no grammar can obey them."""

from __future__ import annotations

from typing import Any

from yarn_gguf.errors import YarnGGUFError

Schema = Any  # a dict or a boolean, once `constraints` has seen it

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ANNOTATIONS = _words("""
    title description default example examples $comment $schema $anchor $defs definitions deprecated readOnly
    writeOnly contentMediaType contentEncoding contentSchema discriminator externalDocs
""")
_NUMERIC = _words("minimum maximum exclusiveMinimum exclusiveMaximum multipleOf")
_REFUSED_OF_OBJECTS = _words("""
    patternProperties dependentRequired dependentSchemas dependencies unevaluatedProperties
""")
_REFUSED_OF_ARRAYS = _words("uniqueItems contains minContains maxContains unevaluatedItems")
# the keywords that constrain values of one type alone
BY_TYPE: dict[str, frozenset[str]] = {
    "object": _REFUSED_OF_OBJECTS
    | _words("properties required additionalProperties propertyNames minProperties maxProperties"),
    "array": _REFUSED_OF_ARRAYS | _words("items prefixItems additionalItems minItems maxItems"),
    "string": _words("minLength maxLength pattern format"),
    "number": _NUMERIC,
    "integer": _NUMERIC,
    "boolean": frozenset(),
    "null": frozenset(),
}
_KNOWN = _words("$ref anyOf oneOf allOf const enum type").union(*BY_TYPE.values())
# (keyword, value) that constrains nothing
_IDLE: list[tuple[str, Any]] = [(name, 0) for name in ("minLength", "minItems", "minProperties")]
_IDLE += [("uniqueItems", False), ("not", False), ("unevaluatedProperties", True), ("unevaluatedItems", True)]
_IDLE += [
    (name, {}) for name in ("patternProperties", "dependentRequired", "dependentSchemas", "dependencies")
]


def refusal(place: str, what: str) -> YarnGGUFError:
    """Return the error for the part of a schema at `place`, a JSON pointer."""
    return YarnGGUFError(f"the JSON schema cannot be obeyed: {place}: {what}")


def not_obeyed(key: str, place: str) -> YarnGGUFError:
    """Return the error for a keyword of the schema at `place`."""
    return refusal(f"{place}/{key}", "this keyword is not obeyed: leave it out, or express it otherwise")


def constraints(schema: Schema, place: str) -> dict[str, Any]:
    """Return the keywords of a schema that constrain. Raises YarnGGUFError for one that is not understood."""
    if schema is True:
        return {}
    if schema is False:
        raise refusal(place, "no value is allowed here: leave it out")
    if not isinstance(schema, dict):
        raise refusal(place, f"a schema is an object or a boolean, got {schema!r}")
    found = {}
    for key, value in schema.items():
        if key in _ANNOTATIONS or key.startswith("x-") or _is_idle(key, value):
            continue
        if key == "$id":
            if place != "#":
                raise refusal(f"{place}/$id", "a schema within a schema, with references of its own")
            continue
        if key not in _KNOWN:
            raise refusal(
                f"{place}/{key}", "this keyword is not obeyed: leave it out, or express it otherwise"
            )
        found[key] = value
    return found


def of_type(name: str, keywords: dict[str, Any], place: str) -> dict[str, Any]:
    """Return the keywords that constrain values of a type. Raises YarnGGUFError if one is not obeyed."""
    found = {key: value for key, value in keywords.items() if key in BY_TYPE[name]}
    for key in found.keys() & (_REFUSED_OF_OBJECTS | _REFUSED_OF_ARRAYS):
        raise not_obeyed(key, place)
    return found


def types_in(keywords: dict[str, Any], place: str) -> list[str]:
    """Return the types that a schema allows: those of `type`, else those that its keywords are for."""
    if "type" not in keywords:
        return [name for name in TYPES if name != "integer" and keywords.keys() & BY_TYPE[name]]
    named = keywords["type"] if isinstance(keywords["type"], list) else [keywords["type"]]
    if not named or any(name not in TYPES for name in named):
        raise refusal(f"{place}/type", f"types are {', '.join(TYPES)}, got {keywords['type']!r}")
    return named


def type_of(value: Any) -> str:
    """Return the JSON type of a value; "number" for whole numbers, too."""
    if isinstance(value, bool):
        return "boolean"
    names = {dict: "object", list: "array", str: "string", int: "number", float: "number"}
    return names.get(type(value), "null")


def is_of(value: Any, types: list[str]) -> bool:
    """Return whether a value has one of the types."""
    is_whole = type_of(value) == "number" and float(value).is_integer()
    return type_of(value) in types or (is_whole and "integer" in types)


def count_in(keywords: dict[str, Any], key: str, place: str, default: int | None) -> int | None:
    """Return the value of a keyword that counts. Raises YarnGGUFError."""
    value = keywords.get(key, default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise refusal(f"{place}/{key}", f"a count is a whole number >= 0, got {value!r}")
    return value


def list_in(keywords: dict[str, Any], key: str, place: str) -> list[Any]:
    """Return the value of a keyword that is a list with something in it. Raises YarnGGUFError."""
    value = keywords[key]
    if not isinstance(value, list) or not value:
        raise refusal(f"{place}/{key}", f"this is a list with something in it, got {value!r}")
    return value


def _is_idle(key: str, value: Any) -> bool:
    return any(key == name and value == idle and type(value) is type(idle) for name, idle in _IDLE)
