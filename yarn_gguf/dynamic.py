"""Dynamic scaling: a factor that follows the length of the text (paper, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.rope import RopeScaling

METHODS = ("linear", "ntk", "by-parts", "yarn")
POLICIES = ("growth", "request", "exact")


@dataclass(frozen=True)
class DynamicScaling:
    """A static method with s = max(1, l'/L) for the present length l' of the text.

    method: linear | ntk (transformers' "dynamic") | by-parts | yarn, whose temperature follows s.
    policy: when s moves. "growth": by `step`, ahead of the text. "request": before the prompt is read, to
        what prompt and answer will need, and then as growth. "exact": with every batch that is read and
        every token that is written, to what they need, as in the paper; it needs a K cache in float32,
        where rotations as small are not lost in rounding.
    original_max_position_embeddings: L, tokens; None for what the model's file says.
    factor: the smallest s, for a checkpoint that was fine-tuned with it.
    ntk_factor: f of transformers' formula b' = b (f l'/L - (f - 1))^(dim/(dim-2)).
    step: ratio of two neighbouring s; below 1.01 only with a K cache in float32.
    beta_fast, beta_slow, ramp, truncate: as in RopeScaling.

    Raises RopeScalingError.
    """

    method: str = "yarn"
    policy: str = "growth"
    original_max_position_embeddings: int | None = None
    factor: float = 1.0
    ntk_factor: float = 1.0
    step: float = 2**0.125
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    ramp: str = "index"
    truncate: bool = True

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("policy", POLICIES)):
            if getattr(self, name) not in known:
                raise RopeScalingError(
                    f"dynamic scaling {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        for name in ("ntk_factor", "step"):
            RopeScaling("linear", getattr(self, name))  # a number >= 1
        self._static(self.factor)

    def with_original_context(self, length: int) -> DynamicScaling:
        """This scaling, with `length` tokens as the original context where it names none itself."""
        if self.original_max_position_embeddings is not None:
            return self
        return replace(self, original_max_position_embeddings=length)

    def at(self, seq_len: int) -> RopeScaling:
        """The static scaling for a text of `seq_len` tokens; the original context must be known."""
        s = max(self.factor, 1.0, seq_len / self.original_max_position_embeddings)
        return self._static(self.ntk_factor * s - (self.ntk_factor - 1) if self.method == "ntk" else s)

    def _static(self, factor: float) -> RopeScaling:
        return RopeScaling(
            self.method,
            factor,
            self.original_max_position_embeddings,
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
            ramp=self.ramp,
            truncate=self.truncate,
        )


def dynamic_of(name: str) -> DynamicScaling | None:
    """The scaling that a name like "dynamic-yarn" asks for; None if it is no such name."""
    prefix, _, method = name.partition("-")
    return DynamicScaling(method) if prefix == "dynamic" else None


def dynamic_from(
    scaling: RopeScaling, policy: str, factor: float = 1.0, ntk_factor: float = 1.0
) -> DynamicScaling:
    """`scaling` with a factor that follows the text, from `factor` on. Raises RopeScalingError."""
    if scaling.attention_factor is not None or scaling.mscale is not None:
        raise RopeScalingError("the temperature of dynamic scaling follows the factor: leave it out")
    return DynamicScaling(
        scaling.method,
        policy,
        scaling.original_max_position_embeddings,
        factor,
        ntk_factor,
        beta_fast=scaling.beta_fast,
        beta_slow=scaling.beta_slow,
        ramp=scaling.ramp,
        truncate=scaling.truncate,
    )
