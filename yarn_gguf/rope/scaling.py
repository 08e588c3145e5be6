"""A static rope scaling: a method and its parameters, checked when it is made.

Its formulas are in formulas.py. Every method agrees numerically with transformers' ``modeling_rope_utils``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np

from yarn_gguf.rope.checks import (
    is_number,
    is_positive,
    is_positive_tuple,
    refusal,
    require,
    require_rotary_embedding,
)
from yarn_gguf.rope.formulas import (
    blended,
    extended_length,
    index_ramp,
    inverse_frequencies,
    longrope_mscale,
    mscale_ratio,
    ntk_base,
    rotations_ramp,
    rotations_to_index,
    yarn_mscale,
)

EXTENDING_METHODS = ("linear", "ntk", "by-parts", "yarn")  # the factor is a ratio of two contexts
TRAINED_METHODS = ("llama3", "longrope", "explicit")  # a model is trained with such a scaling
METHODS = ("none", *EXTENDING_METHODS, *TRAINED_METHODS)
RAMPS = ("index", "rotations")

_LLAMA_3_1 = "(Llama 3.1: low_freq_factor=1, high_freq_factor=4, factor=8)"


class RopeFrequencies(NamedTuple):
    """The numbers that a rotary embedding computes with.

    inv_freq: radians per position, float64, shape (dim // 2,).
    attention_factor: multiplies cos and sin, so q and k each, so attention logits twice.
    """

    inv_freq: np.ndarray
    attention_factor: float


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies of a model are scaled: a method and its parameters.

    Dimension and base belong to the model and are given to :meth:`frequencies`. The values are checked when
    the scaling is made. Raises RopeScalingError.

    method: none | linear (PI) | ntk (NTK-aware) | by-parts | yarn | llama3 | longrope | explicit.
    factor: s = extended length / original length, at least 1.
    original_max_position_embeddings: L, tokens. All methods need it except none, linear, ntk and explicit.
    beta_fast, beta_slow: rotations within L at which the ramp of by-parts and yarn begins and ends. The
        paper calls them beta and alpha.
    ramp: "index" blends linearly in the dimension's index (reference code, transformers, llama.cpp);
        "rotations" blends linearly in the number of rotations (the paper's Eq. 18).
    truncate: whether the bounds of the index ramp are rounded outwards to whole dimensions.
    attention_factor: replaces the method's own temperature. It is the paper's sqrt(1/t).
    mscale, mscale_all_dim: DeepSeek's way to give the temperature of yarn. One without the other is ignored.
    low_freq_factor, high_freq_factor: the bounds of llama3's blend, in rotations within L.
    short_factor, long_factor: longrope's divisors of theta_i, within L and beyond; dim // 2 numbers each.
    inv_freq: explicit's frequencies, radians per position; dim // 2 numbers.
    """

    method: str = "none"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    ramp: str = "index"
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    inv_freq: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        require("method", self.method, self.method in METHODS, f"one of {', '.join(METHODS)}")
        require("ramp", self.ramp, self.ramp in RAMPS, f"one of {', '.join(RAMPS)}")
        require("truncate", self.truncate, isinstance(self.truncate, bool), "true or false")
        require("factor", self.factor, is_number(self.factor) and self.factor >= 1, "a number >= 1")
        require("beta_slow", self.beta_slow, is_positive(self.beta_slow), "a number > 0")
        is_above = is_positive(self.beta_fast) and self.beta_fast > self.beta_slow
        require("beta_fast", self.beta_fast, is_above, f"a number > beta_slow = {self.beta_slow}")
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            value = getattr(self, name)
            require(name, value, value is None or is_positive(value), "a number > 0")
        name, value = "original_max_position_embeddings", self.original_max_position_embeddings
        is_length = isinstance(value, int) and is_positive(value)
        require(name, value, value is None or is_length, "a whole number of tokens > 0")
        if self.method == "llama3":
            self._llama3_bounds()
        if self.method == "longrope":
            for name in ("short_factor", "long_factor"):
                self._require_tuple(name, "a tuple of numbers > 0, one a frequency")
            length = self.original_max_position_embeddings  # temperature() divides by its logarithm
            require("original_max_position_embeddings", length, length != 1, "more than 1 token for longrope")
        if self.method == "explicit":
            self._require_tuple("inv_freq", "a tuple of numbers > 0")

    # ------------------------------------------------------------------------------------------

    @property
    def is_extension(self) -> bool:
        """Whether the factor is the ratio of the extended to the original context."""
        return self.method in EXTENDING_METHODS

    @property
    def is_trained_in(self) -> bool:
        """Whether a model is trained with this scaling, so that another cannot replace it."""
        return self.method in TRAINED_METHODS

    @property
    def has_ramp(self) -> bool:
        """Whether the method blends interpolation and extrapolation by a ramp (by-parts and yarn)."""
        return self.method in ("by-parts", "yarn")

    @property
    def original_context(self) -> int:
        """L in tokens. Raises RopeScalingError if it is not known."""
        length = self.original_max_position_embeddings
        if length is None:
            needed = f"the context length that the model was trained with, in tokens ({self.method} needs it)"
            raise refusal("original_max_position_embeddings", length, needed)
        return length

    @property
    def extended_context(self) -> int | None:
        """L' = s L in tokens.

        None if L is not known, or if the factor is no ratio of contexts (llama3, longrope). The factor of an
        explicit table is one.
        """
        length = self.original_max_position_embeddings
        has_ratio = not self.is_trained_in or self.method == "explicit"
        if length is None or not has_ratio:
            return None
        return extended_length(self.factor, length)

    @property
    def rotation_bounds(self) -> tuple[float, float]:
        """The bounds of the blend, in rotations within L.

        A frequency is divided by s up to the first, and left alone from the second on. by-parts and yarn:
        beta_slow, beta_fast. llama3: low_freq_factor, high_freq_factor.
        """
        return self._llama3_bounds() if self.method == "llama3" else (self.beta_slow, self.beta_fast)

    def with_original_context(self, length: int) -> RopeScaling:
        """Return this scaling with `length` tokens as the original context, unless it names one itself."""
        if self.original_max_position_embeddings is not None:
            return self
        return replace(self, original_max_position_embeddings=length)

    def as_float32(self) -> RopeScaling:
        """Return this scaling with its single numbers rounded to float32, the type of GGUF's keys."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        rounded: dict[str, Any] = {k: float(np.float32(v)) for k, v in values.items() if isinstance(v, float)}
        return replace(self, **rounded)

    def check(self, dim: int, rope_theta: float) -> None:
        """Raise RopeScalingError if a model of `dim` rotary dimensions and this base cannot be so scaled.

        Refused: a ramp whose bounds cross, a table of the wrong length, ntk with two dimensions, and an
        original context that is needed and not known.
        """
        for seq_len in (1, None):  # longrope has a table for short texts and one for long texts
            self.frequencies(dim, rope_theta, seq_len=seq_len)

    def temperature(self) -> float:
        """Return sqrt(1/t), the factor on q and on k: attention_factor, else the method's own (Eq. 22).

        Raises RopeScalingError if longrope needs the original context and it is not known.
        """
        if self.attention_factor is not None:
            return float(self.attention_factor)
        if self.method == "yarn":
            if self.mscale and self.mscale_all_dim:
                return mscale_ratio(self.factor, self.mscale, self.mscale_all_dim)
            return yarn_mscale(self.factor)
        if self.method == "longrope" and self.factor > 1:
            return longrope_mscale(self.factor, self.original_context)
        return 1.0

    def frequencies(self, dim: int, rope_theta: float, *, seq_len: int | None = None) -> RopeFrequencies:
        """Return the frequencies and the temperature for a model with `dim` rotary dimensions a head.

        seq_len: tokens; only longrope depends on it. Its long factors apply beyond the original context, and
            if no length is given.
        Raises RopeScalingError as `check` does.
        """
        require_rotary_embedding(dim, rope_theta)
        return RopeFrequencies(self._inv_freq(dim, float(rope_theta), seq_len), self.temperature())

    def interpolation(self, dim: int, rope_theta: float) -> np.ndarray:
        """Return how far each frequency is interpolated: 0 left alone (extrapolated), 1 divided by s.

        Shape (dim // 2,), float64. By-parts and yarn: 1 - gamma of Eq. 19. Other methods: computed back from
        the frequencies. Raises RopeScalingError as `check` does.
        """
        require_rotary_embedding(dim, rope_theta)
        if self.has_ramp:
            return 1 - self._ramp(dim, float(rope_theta))
        if self.factor == 1:
            return np.zeros(dim // 2)
        plain = inverse_frequencies(dim, rope_theta)
        scaled = self.frequencies(dim, rope_theta).inv_freq
        return (1 - scaled / plain) / (1 - 1 / self.factor)

    # ------------------------------------------------------------------------------------------

    def _inv_freq(self, dim: int, rope_theta: float, seq_len: int | None) -> np.ndarray:
        theta = inverse_frequencies(dim, rope_theta)
        if self.method == "none":
            return theta
        if self.method == "linear":
            return theta / self.factor
        if self.method == "ntk":
            return inverse_frequencies(dim, ntk_base(rope_theta, self.factor, dim))
        if self.has_ramp:
            return blended(theta, self._ramp(dim, rope_theta), self.factor)
        if self.method == "llama3":
            gamma = rotations_ramp(theta, self.original_context, *self.rotation_bounds)
            return blended(theta, gamma, self.factor)
        if self.method == "explicit":
            return self._table("inv_freq", dim)
        is_long = seq_len is None or seq_len > self.original_context
        return theta / self._table("long_factor" if is_long else "short_factor", dim)

    def _ramp(self, dim: int, rope_theta: float) -> np.ndarray:
        """Return gamma of Eq. 18 and 19. Raises RopeScalingError if the bounds of the index ramp cross."""
        context = self.original_context
        if self.ramp == "rotations":
            theta = inverse_frequencies(dim, rope_theta)
            return rotations_ramp(theta, context, *self.rotation_bounds)
        low = rotations_to_index(self.beta_fast, dim, rope_theta, context)
        high = rotations_to_index(self.beta_slow, dim, rope_theta, context)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        # transformers and ggml compute different things from crossed bounds, and the paper has no such case
        ramp = f"with which the ramp, of dimensions {low:g} to {high:g}, does not end before it begins"
        require("original_max_position_embeddings", context, low <= high, f"one {ramp}")
        return index_ramp(dim, low, high)

    def _llama3_bounds(self) -> tuple[float, float]:
        """Return low_freq_factor and high_freq_factor. Raises RopeScalingError if they are unsound."""
        low, high = self.low_freq_factor, self.high_freq_factor
        if not is_positive(low):
            raise refusal("low_freq_factor", low, f"a number > 0 {_LLAMA_3_1}")
        if high is None:
            raise refusal("high_freq_factor", high, f"a number > 0 {_LLAMA_3_1}")
        if not is_positive(high) or high <= low:
            raise refusal("high_freq_factor", high, f"a number > low_freq_factor = {low}")
        return low, high

    def _require_tuple(self, name: str, expected: str) -> None:
        value = getattr(self, name)
        require(name, value, is_positive_tuple(value), expected)

    def _table(self, name: str, dim: int) -> np.ndarray:
        """Return the field `name` as float64 (dim // 2,). Raises RopeScalingError for another length."""
        values = getattr(self, name)
        expected = f"{dim // 2} numbers for {dim} rotary dimensions"
        require(name, f"{len(values)} numbers", len(values) == dim // 2, expected)
        return np.array(values, dtype=np.float64)


def rope_op_has(scaling: RopeScaling) -> bool:
    """Return whether operands of ggml's rope op express `scaling`. If not, it needs a frequency table."""
    if scaling.has_ramp:
        return scaling.ramp == "index" and scaling.truncate
    return scaling.method in ("none", "linear", "ntk")
