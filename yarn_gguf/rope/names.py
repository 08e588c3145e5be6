"""Scalings by short names, such as yarn:4 or by-parts:2,ramp=rotations, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.rope.dynamic import DynamicScaling, Scaling
from yarn_gguf.rope.scaling import RopeScaling

_PREFIX = "dynamic-"
_STATIC = {each.name: each.default for each in fields(RopeScaling)}  # names and defaults
_DYNAMIC = {each.name: each.default for each in fields(DynamicScaling) if each.name != "scaling"}
_STATIC_IN_DYNAMIC = (
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "ramp",
    "truncate",
)
_FIELDS_OF_DYNAMIC = {"method", *_STATIC_IN_DYNAMIC, *_DYNAMIC}
FIELDS = (_STATIC.keys() | _DYNAMIC.keys()) - {"method"}  # the fields that a short name may set


@dataclass(frozen=True)
class Variant:
    """A scaling and its name. A scaling of None means the one in the model's file."""

    name: str
    scaling: Scaling | None


def parse_variant(text: str, factor: float) -> Variant:
    """Return the scaling named METHOD[:FACTOR][,NAME=VALUE…], dynamic-METHOD[,NAME=VALUE…], none, or file.

    NAME is a field of RopeScaling or DynamicScaling. A method with a factor of 1, and nothing else, is none.
    factor: used if the text names none, by :FACTOR or by factor=.
    Raises RopeScalingError.
    """
    head, *settings = text.split(",")
    method, _, number = head.partition(":")
    values = dict(_setting(text, each) for each in settings)
    if method == "file" and not (number or values):
        return Variant(text, None)
    if method.startswith(_PREFIX):
        if number:
            raise RopeScalingError(f"{text!r}: a dynamic factor follows the text: leave out :{number}")
        method = method.removeprefix(_PREFIX)
        return Variant(text, _make(DynamicScaling.of, _FIELDS_OF_DYNAMIC, text, method=method, **values))
    if method != "none":
        if number and "factor" in values:
            raise RopeScalingError(f"{text!r}: the factor is given twice: leave out :{number}, or factor=")
        values.setdefault("factor", parse_number(text, number) if number else factor)
    scaling = _make(RopeScaling, set(_STATIC), text, method=method, **values)
    return Variant(text, RopeScaling() if values == {"factor": 1.0} else scaling)


def name_of(scaling: Scaling) -> str:
    """Return the short name of a scaling, without its original context. parse_variant reads it again."""
    settings = changed_values(scaling)
    settings.pop("original_max_position_embeddings", None)
    name = settings.pop("method")
    if isinstance(scaling, DynamicScaling):
        name = _PREFIX + name
    elif name != "none":
        settings.pop("factor", None)
        name += f":{json.dumps(scaling.factor).removesuffix('.0')}"
    return with_settings(name, settings)


def describe(scaling: Scaling) -> str:
    """Return a scaling in words for a screen: its method, and each value that is not a default.

    A table of frequencies or factors is given by its length.
    """
    settings = changed_values(scaling)
    method = settings.pop("method")
    prefix = _PREFIX if isinstance(scaling, DynamicScaling) else ""
    return prefix + ", ".join([method, *(f"{name} {_words(value)}" for name, value in settings.items())])


def changed_values(scaling: Scaling) -> dict[str, Any]:
    """Return the method and the values that differ from their defaults, by field name."""
    static = scaling.scaling if isinstance(scaling, DynamicScaling) else scaling
    values = {"method": static.method}
    values |= _changed(static, _STATIC)
    return values | (_changed(scaling, _DYNAMIC) if isinstance(scaling, DynamicScaling) else {})


def with_settings(name: str, settings: Mapping[str, Any]) -> str:
    """Return `name` with ,NAME=VALUE for each of `settings`."""
    texts = (
        f",{each}={value if isinstance(value, str) else json.dumps(value).removesuffix('.0')}"
        for each, value in settings.items()
    )
    return name + "".join(texts)


def as_json(scaling: Scaling) -> dict[str, Any]:
    """Return the values of a scaling by field name, in JSON's types. from_json reads them again."""
    values = {"method": scaling.method, **asdict(scaling)}
    values |= values.pop("scaling", {})  # the static part of a dynamic scaling
    given = {name: value for name, value in values.items() if value is not None}
    return json.loads(json.dumps(given))


def from_json(values: dict[str, Any]) -> Scaling:
    """Return the scaling that as_json wrote. Raises RopeScalingError for values of another version."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return DynamicScaling.of(**values) if "policy" in values else RopeScaling(**values)
    except TypeError as error:
        raise RopeScalingError(f"no scaling of this version of yarn-gguf: {error}") from error


def parse_number(text: str, number: str, place: str = "after the colon") -> float:
    """Return `number`, a part of the name `text`. Raises RopeScalingError, which names the place."""
    try:
        return float(number)
    except ValueError:
        raise RopeScalingError(f"{text!r}: a number is expected {place}, got {number!r}") from None


# ----------------------------------------------------------------------------------------------


def _changed(scaling: Scaling, defaults: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: getattr(scaling, name) for name in defaults if name != "method"}
    return {name: value for name, value in values.items() if value != defaults[name]}


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return f"of {len(value)} numbers"
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _setting(text: str, setting: str) -> tuple[str, Any]:
    name, equals, value = setting.partition("=")
    if not (name and equals):
        raise RopeScalingError(f"{text!r}: NAME=VALUE is expected after the comma, got {setting!r}")
    try:
        return name, json.loads(value)  # numbers, true and false
    except ValueError:
        return name, value


def _make(kind: Callable[..., Any], known: set[str], text: str, **values: Any) -> Any:
    if unknown := set(values) - known:
        raise RopeScalingError(f"{text!r}: {min(unknown)!r} is none of {', '.join(sorted(known))}")
    try:
        return kind(**values)
    except RopeScalingError as error:
        raise RopeScalingError(f"{text!r}: {error}") from error
