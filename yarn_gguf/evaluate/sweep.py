"""A sweep: each scaling with each of several values of one field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.rope.names import FIELDS, parse_number


@dataclass(frozen=True)
class Sweep:
    """A field of RopeScaling or DynamicScaling, and the values that it takes in turn. None for no sweep."""

    field: str | None = None
    values: tuple[str, ...] = ()

    def names(self, scalings: Sequence[str]) -> list[str]:
        """Return the short name of each scaling with each value."""
        if self.field is None:
            return list(scalings)
        return [f"{scaling},{self.field}={value}" for scaling in scalings for value in self.values]

    def fields(self, name: str) -> dict[str, Any]:
        """Return the parts of a name that `names` made: the scaling (of), the field (swept) and its value."""
        if self.field is None:
            return {}
        of, _, setting = name.rpartition(",")
        return {"of": of, "swept": self.field, "value": float(setting.partition("=")[2])}


def parse_sweep(text: str) -> Sweep:
    """Return the sweep NAME=VALUE,VALUE…. Raises RopeScalingError."""
    field, _, values = text.partition("=")
    known = FIELDS | {"method"}
    if field not in known:
        raise RopeScalingError(f"{text!r}: {field!r} is none of {', '.join(sorted(known))}")
    for value in values.split(","):
        parse_number(text, value, "for each value")
    return Sweep(field, tuple(values.split(",")))
