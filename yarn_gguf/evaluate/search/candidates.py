"""The scalings that advise tries: references, a first selection, and the neighbours of a good one.

Each makes the wanted context fit: static factors are large enough, and dynamic factors grow as needed. Each
can be written into a file by `yarn-gguf extend`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.rope.dynamic import DynamicScaling, Scaling
from yarn_gguf.rope.formulas import yarn_mscale
from yarn_gguf.rope.names import Variant, changed_values, name_of
from yarn_gguf.rope.scaling import RopeScaling

_STATIC_ALONE = ("factor", "attention_factor")  # fields that dynamic scaling computes itself


class Role(IntEnum):
    """The role of a candidate in the search, the simplest first."""

    FILE = 0  # what the file asks for already: it needs no change
    UNSCALED = 1
    DEFAULT = 2  # plain YaRN
    DYNAMIC = 3  # dynamic YaRN
    SEARCHED = 4


@dataclass(frozen=True)
class Candidate(Variant):
    """A scaling that the search tries, by its name.

    settings: the number of values that it sets. effect: the rotation that the model gets; equal for scalings
    that differ in name alone.
    """

    scaling: Scaling
    role: Role = Role.SEARCHED
    settings: int = 0
    effect: Hashable = field(default=None, repr=False)

    @property
    def complexity(self) -> tuple[Role, int]:
        """The sort key from the simplest on, which is preferred if losses do not differ significantly."""
        return self.role, self.settings


@dataclass(frozen=True)
class Space:
    """The space of scalings for texts of `context` tokens, beyond the `original` context.

    dim, rope_theta: those of the model's rotary embedding.
    """

    dim: int
    rope_theta: float
    original: int
    context: int

    @property
    def factor(self) -> float:
        """The smallest factor that suffices, rounded up to a thousandth."""
        return math.ceil(self.context / self.original * 1000 - 1e-6) / 1000

    @property
    def end(self) -> int:
        """The position where the last quarter beyond the original context begins."""
        return self.context - (self.context - self.original) // 4

    def references(self) -> list[Candidate]:
        """Return no scaling, plain YaRN and dynamic YaRN, with which all others are compared.

        Raises RopeScalingError.
        """
        return [
            self.candidate(RopeScaling(), role=Role.UNSCALED),
            self.candidate(self._static("yarn"), role=Role.DEFAULT),
            self.candidate(self._dynamic("yarn"), role=Role.DYNAMIC),
        ]

    def first(self) -> list[Candidate]:
        """Return other methods, factors, ramps and temperatures, the most promising first."""
        static, dynamic = self._static, self._dynamic
        return self._candidates(
            [
                (dynamic, {"method": "by-parts"}),
                (static, {"method": "by-parts"}),
                (dynamic, {"beta_fast": 16.0}),
                (dynamic, {"method": "ntk"}),
                (dynamic, {"beta_slow": 2.0}),
                (static, self._tempered(self.factor, 0.05)),
                (dynamic, {"beta_fast": 64.0}),
                (static, {"method": "ntk", "factor": self._times(1.25)}),
                (static, {"beta_fast": 16.0}),
                (dynamic, {"beta_slow": 0.5}),
                (static, self._tempered(self.factor, 0.15)),
                (static, {"beta_slow": 2.0}),
                (dynamic, {"ramp": "rotations"}),
                (static, {"factor": self._times(1.25)}),
                (static, {"ramp": "rotations"}),
                (static, {"method": "linear"}),
                (dynamic, {"method": "linear"}),
                (static, {"method": "ntk", "factor": self._times(1.5)}),
            ]
        )

    def around(self, candidate: Candidate, step: float) -> list[Candidate]:
        """Return the neighbours of `candidate`, which differ in one value.

        step: 1 doubles or halves a bound of the ramp; smaller steps change less.
        """
        scaling = candidate.scaling
        if scaling.method == "none":
            return []
        values = _settings(scaling)
        is_dynamic = isinstance(scaling, DynamicScaling)
        ways: list[dict[str, Any]] = []
        static = scaling.scaling if isinstance(scaling, DynamicScaling) else scaling
        if static.has_ramp:
            ways += [
                {name: _digits(getattr(static, name) * 2.0**power)}
                for power in (-step, step)
                for name in ("beta_fast", "beta_slow")
            ]
            if is_dynamic:
                ways.append({"method": "yarn" if scaling.method == "by-parts" else "by-parts"})
            else:
                now = (static.temperature() - 1) / math.log(static.factor)
                ways += [self._tempered(static.factor, now + change * step) for change in (-0.05, 0.05)]
        if not is_dynamic:
            powers = (-step / 4, step / 4)
            ways += [{"factor": self._times(static.factor / self.factor * 2.0**power)} for power in powers]
        same, other = (self._dynamic, self._static) if is_dynamic else (self._static, self._dynamic)
        switched = {name: value for name, value in values.items() if name not in _STATIC_ALONE}
        return self._candidates([*((same, {**values, **way}) for way in ways), (other, switched)])

    def candidate(self, scaling: Scaling, name: str | None = None, role: Role = Role.SEARCHED) -> Candidate:
        """Return `scaling` as a candidate, by `name` or its short name. Raises RopeScalingError."""
        scaling = scaling.with_original_context(self.original)
        static = scaling.at(self.context) if isinstance(scaling, DynamicScaling) else scaling
        inv_freq, temperature = static.frequencies(self.dim, self.rope_theta)
        table = tuple(np.round(np.log(inv_freq), 6).tolist())
        effect = (type(scaling).__name__, round(temperature, 6), table)
        return Candidate(name or name_of(scaling), scaling, role, len(_settings(scaling)), effect)

    def static_of(self, scaling: Scaling) -> RopeScaling:
        """Return a static scaling unchanged, and a dynamic one as it is for a text that fills the context."""
        if isinstance(scaling, RopeScaling):
            return scaling
        return replace(scaling.at(self.context), factor=self.factor)

    # ------------------------------------------------------------------------------------------

    def _static(self, method: str = "yarn", factor: float | None = None, **values: Any) -> RopeScaling:
        return RopeScaling(method, factor or self.factor, self.original, **values)

    def _dynamic(self, method: str = "yarn", **values: Any) -> DynamicScaling:
        return DynamicScaling.of(method, original_max_position_embeddings=self.original, **values)

    def _times(self, ratio: float) -> float:
        return max(self.factor, round(self.factor * ratio, 3))

    def _tempered(self, factor: float, coefficient: float) -> dict[str, Any]:
        """Return settings with the temperature 1 + coefficient ln(factor); YaRN's own coefficient is 0.1."""
        temperature = round(1 + max(0.0, coefficient) * math.log(factor), 4)
        if temperature == 1:
            return {"method": "by-parts", "attention_factor": None}
        own = math.isclose(temperature, yarn_mscale(factor), abs_tol=1e-4)
        return {"method": "yarn", "attention_factor": None if own else temperature}

    def _candidates(self, asked: Iterable[tuple[Any, dict[str, Any]]]) -> list[Candidate]:
        """Return the valid candidates, each effect once."""
        found: dict[Hashable, Candidate] = {}
        for make, values in asked:
            try:
                candidate = self.candidate(make(**values))
            except RopeScalingError:
                continue  # such as ramp bounds that cross
            found.setdefault(candidate.effect, candidate)
        return list(found.values())


# ----------------------------------------------------------------------------------------------


def _settings(scaling: Scaling) -> dict[str, Any]:
    """Return the method, and the values that differ from the defaults, without the original context."""
    values = changed_values(scaling)
    values.pop("original_max_position_embeddings", None)
    return values


def _digits(value: float) -> float:
    return float(f"{value:.3g}")
