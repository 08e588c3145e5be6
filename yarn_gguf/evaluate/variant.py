"""Scalings by short names, such as yarn:4 or by-parts:2,ramp=rotations, to be compared on one model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from yarn_gguf.dynamic import DynamicScaling
from yarn_gguf.errors import RopeScalingError
from yarn_gguf.rope import RopeScaling

_PREFIX = "dynamic-"
FIELDS = {each.name for kind in (RopeScaling, DynamicScaling) for each in fields(kind)} - {"method"}


@dataclass(frozen=True)
class Variant:
    """scaling: None for what the model's file says; without an original context, the file's."""

    name: str
    scaling: RopeScaling | DynamicScaling | None


def parse_variant(text: str, factor: float) -> Variant:
    """What `text` names: METHOD[:FACTOR][,NAME=VALUE…], dynamic-METHOD[,NAME=VALUE…], none, or file.

    NAME is a field of RopeScaling or DynamicScaling. factor: where the text names none, as :FACTOR or
    factor=. A method at a factor of 1, without more, is none. Raises RopeScalingError.
    """
    head, *settings = text.split(",")
    method, _, number = head.partition(":")
    values = dict(_setting(text, each) for each in settings)
    if method == "file" and not (number or values):
        return Variant(text, None)
    if method.startswith(_PREFIX):
        if number:
            raise RopeScalingError(f"{text!r}: a dynamic factor follows the text: leave out :{number}")
        return Variant(text, _make(DynamicScaling, text, method=method.removeprefix(_PREFIX), **values))
    if method != "none":
        if number and "factor" in values:
            raise RopeScalingError(f"{text!r}: the factor is given twice: leave out :{number}, or factor=")
        values.setdefault("factor", _number(text, number) if number else factor)
    scaling = _make(RopeScaling, text, method=method, **values)
    return Variant(text, RopeScaling() if values == {"factor": 1.0} else scaling)


def name_of(scaling: RopeScaling | DynamicScaling) -> str:
    """The short name of a scaling, but for its original context: parse_variant gives the scaling again."""
    is_dynamic = isinstance(scaling, DynamicScaling)
    name = _PREFIX + scaling.method if is_dynamic else scaling.method
    if not is_dynamic and scaling.method != "none":
        name += f":{json.dumps(scaling.factor).removesuffix('.0')}"
    unnamed = {"method", "original_max_position_embeddings"} | (set() if is_dynamic else {"factor"})
    settings = {
        each.name: value
        for each in fields(scaling)
        if each.name not in unnamed and (value := getattr(scaling, each.name)) != each.default
    }
    return with_settings(name, settings)


def with_settings(name: str, settings: Mapping[str, Any]) -> str:
    """`name` and what stands behind its comma: NAME=VALUE of each."""
    texts = (
        f",{each}={value if isinstance(value, str) else json.dumps(value).removesuffix('.0')}"
        for each, value in settings.items()
    )
    return name + "".join(texts)


@dataclass(frozen=True)
class Sweep:
    """A field of RopeScaling or DynamicScaling, and the values that it takes in turn. None: no sweep."""

    field: str | None = None
    values: tuple[str, ...] = ()

    def names(self, scalings: Sequence[str]) -> list[str]:
        """Each scaling with each value."""
        if self.field is None:
            return list(scalings)
        return [f"{scaling},{self.field}={value}" for scaling in scalings for value in self.values]

    def fields(self, name: str) -> dict[str, Any]:
        """What one of `names` stands for: the scaling `of` which the field `swept` has a `value`."""
        if self.field is None:
            return {}
        of, _, setting = name.rpartition(",")
        return {"of": of, "swept": self.field, "value": float(setting.partition("=")[2])}


def parse_sweep(text: str) -> Sweep:
    """NAME=VALUE,VALUE… Raises RopeScalingError."""
    field, _, values = text.partition("=")
    known = {each.name for kind in (RopeScaling, DynamicScaling) for each in fields(kind)}
    if field not in known:
        raise RopeScalingError(f"{text!r}: {field!r} is none of {', '.join(sorted(known))}")
    for value in values.split(","):
        _number(text, value, "for each value")
    return Sweep(field, tuple(values.split(",")))


# ----------------------------------------------------------------------------------------------


def _setting(text: str, setting: str) -> tuple[str, Any]:
    name, equals, value = setting.partition("=")
    if not (name and equals):
        raise RopeScalingError(f"{text!r}: NAME=VALUE is expected after the comma, got {setting!r}")
    try:
        return name, json.loads(value)  # numbers, true and false
    except ValueError:
        return name, value


def _number(text: str, number: str, place: str = "after the colon") -> float:
    try:
        return float(number)
    except ValueError:
        raise RopeScalingError(f"{text!r}: a number is expected {place}, got {number!r}") from None


def _make(kind: type, text: str, **values: Any) -> Any:
    known = {each.name for each in fields(kind)}
    if unknown := set(values) - known:
        raise RopeScalingError(f"{text!r}: {min(unknown)!r} is none of {', '.join(sorted(known))}")
    try:
        return kind(**values)
    except RopeScalingError as error:
        raise RopeScalingError(f"{text!r}: {error}") from error
