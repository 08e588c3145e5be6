"""The scalings that advise tries: references, a first choice of many, and what lies around a good one.

All make the wanted context fit: no static factor is smaller, and what is dynamic grows to it. All can be
written into a file by `yarn-gguf extend`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.rope.dynamic import DynamicScaling, Scaling
from yarn_gguf.rope.formulas import yarn_mscale
from yarn_gguf.rope.names import Variant, changed_values, name_of
from yarn_gguf.rope.scaling import RopeScaling

_STATIC_ALONE = ("factor", "attention_factor")  # values that dynamic scaling finds itself


@dataclass(frozen=True)
class Candidate(Variant):
    """complexity: what is simpler is preferred where losses do not differ. effect: what the model feels of
    it, equal for scalings that differ in name alone."""

    complexity: int = 0
    effect: Hashable = field(default=None, repr=False)


@dataclass(frozen=True)
class Space:
    """Scalings for texts of `context` tokens.

    dim, rope_theta: of the model's rotary embedding. original, context: tokens; context is the larger.
    """

    dim: int
    rope_theta: float
    original: int
    context: int

    @property
    def factor(self) -> float:
        """The smallest that suffices, rounded up to a thousandth."""
        return math.ceil(self.context / self.original * 1000 - 1e-6) / 1000

    @property
    def end(self) -> int:
        """Where the last quarter begins of the positions beyond the original context."""
        return self.context - (self.context - self.original) // 4

    def references(self) -> list[Candidate]:
        """No scaling, plain YaRN, dynamic YaRN: with what all others are compared. The simplest first.

        Raises RopeScalingError.
        """
        scalings = RopeScaling(), self._static("yarn"), self._dynamic("yarn")
        return [replace(self.candidate(each), complexity=i) for i, each in enumerate(scalings)]

    def first(self) -> list[Candidate]:
        """Other methods, factors, ramps and temperatures, the most promising first."""
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
        """What differs from `candidate` in one value, by `step`: 1 doubles or halves a bound of the ramp."""
        scaling = candidate.scaling
        if scaling is None or scaling.method == "none":
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
                now = (scaling.temperature() - 1) / math.log(scaling.factor)
                ways += [self._tempered(scaling.factor, now + change * step) for change in (-0.05, 0.05)]
        if not is_dynamic:
            powers = (-step / 4, step / 4)
            ways += [{"factor": self._times(scaling.factor / self.factor * 2.0**power)} for power in powers]
        same, other = (self._dynamic, self._static) if is_dynamic else (self._static, self._dynamic)
        switched = {name: value for name, value in values.items() if name not in _STATIC_ALONE}
        return self._candidates([*((same, {**values, **way}) for way in ways), (other, switched)])

    def candidate(self, scaling: Scaling, name: str | None = None) -> Candidate:
        """`scaling`, by `name` or its own short name. Raises RopeScalingError."""
        scaling = scaling.with_original_context(self.original)
        static = scaling.at(self.context) if isinstance(scaling, DynamicScaling) else scaling
        inv_freq, temperature = static.frequencies(self.dim, self.rope_theta)
        table = tuple(np.round(np.log(inv_freq), 6).tolist())
        effect = (type(scaling).__name__, round(temperature, 6), table)
        complexity = len(("none", "yarn", "dynamic")) + len(_settings(scaling))
        return Candidate(name or name_of(scaling), scaling, complexity, effect)

    def static_of(self, scaling: Scaling) -> RopeScaling:
        """The scaling itself, or what a dynamic one is where the text fills the context."""
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
        """YaRN's method and temperature, 1 + coefficient ln(factor); its own coefficient is 0.1."""
        temperature = round(1 + max(0.0, coefficient) * math.log(factor), 4)
        if temperature == 1:
            return {"method": "by-parts", "attention_factor": None}
        own = math.isclose(temperature, yarn_mscale(factor), abs_tol=1e-4)
        return {"method": "yarn", "attention_factor": None if own else temperature}

    def _candidates(self, asked: Iterable[tuple[Any, dict[str, Any]]]) -> list[Candidate]:
        """Those of them that make sense, each effect once."""
        found: dict[Hashable, Candidate] = {}
        for make, values in asked:
            try:
                candidate = self.candidate(make(**values))
            except RopeScalingError:
                continue  # bounds of a ramp that cross, say
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
