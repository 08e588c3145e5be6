"""Dynamic scaling: a factor that follows the length of the text (paper, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.rope.formulas import dynamic_ntk_factor
from yarn_gguf.rope.scaling import EXTENDING_METHODS, RopeScaling

POLICIES = ("growth", "request", "exact")
DYNAMIC_METHODS = (*EXTENDING_METHODS, "longrope")


@dataclass(frozen=True)
class DynamicScaling:
    """A static scaling whose factor s follows the present length l' of the text: s = max(factor, l'/L).

    LongRoPE has two tables instead: the short factors up to L, the long ones beyond.

    scaling: the method and its ramp. Its original context is L in tokens; None means the one in the model's
        file. Its factor is the smallest s, above 1 for a checkpoint that was fine-tuned with it. The
        temperature follows s. The method "ntk" is transformers' "dynamic".
    policy: when s changes.
        "growth": by `step`, ahead of the text.
        "request": to the length of prompt and answer before the prompt is read, then as "growth".
        "exact": with every batch that is read and every token that is written, as in the paper. It needs a
            K cache in float32. In other types, rounding loses such small rotations.
    ntk_factor: f of transformers' formula b' = b (f l'/L - (f - 1))^(dim/(dim-2)).
    step: ratio of two neighbouring s. A ratio below 1.01 needs a K cache in float32.

    Raises RopeScalingError.
    """

    scaling: RopeScaling = field(default_factory=lambda: RopeScaling("yarn"))
    policy: str = "growth"
    ntk_factor: float = 1.0
    step: float = 2**0.125

    def __post_init__(self) -> None:
        if not isinstance(self.scaling, RopeScaling):
            raise RopeScalingError(
                f"DynamicScaling takes a RopeScaling, got {self.scaling!r}: DynamicScaling.of takes a name"
            )
        _require_known("method", self.scaling.method, DYNAMIC_METHODS)
        _require_known("policy", self.policy, POLICIES)
        has_temperature = self.scaling.attention_factor is not None or self.scaling.mscale is not None
        if has_temperature and not self.has_two_tables:
            raise RopeScalingError("the temperature of dynamic scaling follows the factor: leave it out")
        for name in ("ntk_factor", "step"):
            RopeScaling("linear", getattr(self, name))  # refuses everything but a number >= 1

    @classmethod
    def of(cls, method: str = "yarn", **values: Any) -> DynamicScaling:
        """Return the dynamic scaling of a method by name.

        values: fields of DynamicScaling and of RopeScaling.
        Raises RopeScalingError, and TypeError for an unknown field.
        """
        _require_known("method", method, DYNAMIC_METHODS)
        own = {each.name: values.pop(each.name) for each in fields(cls) if each.name in values}
        return cls(RopeScaling(method, **values), **own)

    @property
    def method(self) -> str:
        """The method of the static scaling."""
        return self.scaling.method

    @property
    def has_two_tables(self) -> bool:
        """Whether the frequencies change once, at L (LongRoPE)."""
        return self.scaling.method == "longrope"

    @property
    def original_max_position_embeddings(self) -> int | None:
        """L in tokens; None means the one in the model's file."""
        return self.scaling.original_max_position_embeddings

    @property
    def reserves_for_request(self) -> bool:
        """Whether s is set for prompt and answer before the prompt is read (policy "request")."""
        return self.policy == "request"

    @property
    def needs_float32_keys(self) -> bool:
        """Whether the K cache must be float32 (policy "exact")."""
        return self.policy == "exact"

    def with_original_context(self, length: int) -> DynamicScaling:
        """Return this scaling with `length` tokens as the original context, unless it names one itself."""
        return replace(self, scaling=self.scaling.with_original_context(length))

    def check(self, dim: int, rope_theta: float) -> None:
        """Raise RopeScalingError if a model of `dim` rotary dimensions and this base cannot be so scaled.

        It refuses what RopeScaling.check refuses, for every factor. The original context must be known.
        """
        self.scaling.check(dim, rope_theta)

    def at(self, seq_len: int) -> RopeScaling:
        """Return the static scaling for a text of `seq_len` tokens. The original context must be known."""
        if self.has_two_tables:
            is_long = seq_len > self.scaling.original_context
            table = self.scaling.long_factor if is_long else self.scaling.short_factor
            return replace(self.scaling, short_factor=table, long_factor=table)
        s = max(self.scaling.factor, 1.0, seq_len / self.scaling.original_context)
        factor = dynamic_ntk_factor(self.ntk_factor, s) if self.method == "ntk" else s
        return replace(self.scaling, factor=factor)


Scaling = RopeScaling | DynamicScaling


def dynamic_of(name: str) -> DynamicScaling | None:
    """Return the scaling that a name like "dynamic-yarn" asks for, or None for any other name."""
    prefix, _, method = name.partition("-")
    return DynamicScaling.of(method) if prefix == "dynamic" else None


def _require_known(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RopeScalingError(f"dynamic scaling {name} must be one of {', '.join(known)}, got {value!r}")
