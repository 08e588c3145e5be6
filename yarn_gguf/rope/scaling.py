"""Rotary frequencies under every static scaling method; the only Python home of these formulas.

Notation (docs/rope-scaling.md): ``dim`` rotary dimensions of a head, b = ``rope_theta``,
theta_i = b^(-2i/dim) in radians per position for i = 0 .. dim/2-1, L =
``original_max_position_embeddings`` in tokens, s = ``factor``. Sources: the YaRN paper (arXiv
2309.00071) and transformers' ``modeling_rope_utils``, with which every method agrees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from yarn_gguf.errors import RopeScalingError

EXTENDING_METHODS = ("linear", "ntk", "by-parts", "yarn")  # their factor is a ratio of two contexts
TRAINED_METHODS = ("llama3", "longrope", "explicit")  # a model is trained with such a scaling
METHODS = ("none", *EXTENDING_METHODS, *TRAINED_METHODS)
RAMPS = ("index", "rotations")

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_FLOAT32_TINY = float(np.finfo(np.float32).tiny)


class RopeFrequencies(NamedTuple):
    """What a rotary embedding needs to know.

    inv_freq: float64 array of shape (dim // 2,), radians per position.
    attention_factor: multiplies cos and sin, hence q and k, hence attention logits twice.
    """

    inv_freq: np.ndarray
    attention_factor: float


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies of a model are scaled: a method and its parameters.

    Dimension and base belong to the model and are given to :meth:`frequencies`. A value is checked
    when it is made: whoever holds a RopeScaling may trust it. Raises RopeScalingError.

    method: none | linear (PI) | ntk (NTK-aware) | by-parts | yarn | llama3 | longrope | explicit.
    factor: s = extended length / original length, at least 1.
    original_max_position_embeddings: L, tokens; needed by all methods but none, linear and ntk.
    beta_fast, beta_slow: rotations within L at which the ramp of by-parts and yarn begins and ends
        (the paper's beta and alpha).
    ramp: "index" blends linearly in the dimension's index (reference code, transformers,
        llama.cpp); "rotations" linearly in the number of rotations (the paper's Eq. 18).
    truncate: round the bounds of the index ramp outwards to whole dimensions.
    attention_factor: overrides the method's own temperature; it is sqrt(1/t) of the paper.
    mscale, mscale_all_dim: DeepSeek's way to give the temperature of yarn.
    low_freq_factor, high_freq_factor: bounds of llama3's blend, in rotations within L.
    short_factor, long_factor: longrope's divisors of theta_i, within and beyond L.
    inv_freq: explicit's frequencies, radians per position.
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
        _require("method", self.method, self.method in METHODS, f"one of {', '.join(METHODS)}")
        _require("ramp", self.ramp, self.ramp in RAMPS, f"one of {', '.join(RAMPS)}")
        _require("truncate", self.truncate, isinstance(self.truncate, bool), "true or false")
        _require("factor", self.factor, _is_number(self.factor) and self.factor >= 1, "a number >= 1")
        _require("beta_slow", self.beta_slow, _is_positive(self.beta_slow), "a number > 0")
        _require(
            "beta_fast",
            self.beta_fast,
            _is_positive(self.beta_fast) and self.beta_fast > self.beta_slow,
            f"a number > beta_slow = {self.beta_slow}",
        )
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            value = getattr(self, name)
            _require(name, value, value is None or _is_positive(value), "a number > 0")
        self._check_original_context()
        self._check_llama3()
        self._check_longrope()
        if self.method == "explicit":
            _require("inv_freq", self.inv_freq, _is_factor_list(self.inv_freq), "a tuple of numbers > 0")

    def _check_original_context(self) -> None:
        name, value = "original_max_position_embeddings", self.original_max_position_embeddings
        is_length = isinstance(value, int) and _is_positive(value)
        _require(name, value, value is None or is_length, "a whole number of tokens > 0")

    def _check_llama3(self) -> None:
        if self.method != "llama3":
            return
        low, high = self.low_freq_factor, self.high_freq_factor
        as_llama_has_it = "(Llama 3.1: low_freq_factor=1, high_freq_factor=4, factor=8)"
        _require("low_freq_factor", low, _is_positive(low), f"a number > 0 {as_llama_has_it}")
        _require("high_freq_factor", high, high is not None, f"a number > 0 {as_llama_has_it}")
        above_low = _is_positive(high) and high > low
        _require("high_freq_factor", high, above_low, f"a number > low_freq_factor = {low}")

    def _check_longrope(self) -> None:
        if self.method != "longrope":
            return
        for name in ("short_factor", "long_factor"):
            value = getattr(self, name)
            _require(name, value, _is_factor_list(value), "a tuple of numbers > 0, one a frequency")
        length = self.original_max_position_embeddings  # its logarithm is a divisor in temperature()
        _require("original_max_position_embeddings", length, length != 1, "more than 1 token for longrope")

    # ------------------------------------------------------------------------------------------

    @property
    def is_extension(self) -> bool:
        """Whether the factor is the ratio of the extended to the original context."""
        return self.method in EXTENDING_METHODS

    @property
    def is_trained_in(self) -> bool:
        """Whether the model was trained with this scaling, so that another cannot take its place."""
        return self.method in TRAINED_METHODS

    @property
    def has_ramp(self) -> bool:
        """Whether the method blends interpolation and extrapolation by a ramp (by-parts and yarn)."""
        return self.method in ("by-parts", "yarn")

    @property
    def original_context(self) -> int:
        """L in tokens. Raises RopeScalingError if it is not known."""
        length = self.original_max_position_embeddings
        needed = f"the context length that the model was trained with, in tokens ({self.method} needs it)"
        _require("original_max_position_embeddings", length, length is not None, needed)
        return length

    @property
    def extended_context(self) -> int | None:
        """L' = s L in tokens.

        None where L is not known, or where the factor is no ratio of contexts (llama3, longrope).
        """
        length = self.original_max_position_embeddings
        if length is None or self.method in ("llama3", "longrope"):
            return None
        return extended_length(self.factor, length)

    def with_original_context(self, length: int) -> RopeScaling:
        """Return this scaling with `length` tokens as the original context, unless it names one itself."""
        if self.original_max_position_embeddings is not None:
            return self
        return replace(self, original_max_position_embeddings=length)

    def temperature(self) -> float:
        """sqrt(1/t), the factor on q and on k: the explicit one, else the method's own (Eq. 22)."""
        if self.attention_factor is not None:
            return float(self.attention_factor)
        if self.method == "yarn":
            if self.mscale and self.mscale_all_dim:
                return yarn_mscale(self.factor, self.mscale) / yarn_mscale(self.factor, self.mscale_all_dim)
            return yarn_mscale(self.factor)
        if self.method == "longrope" and self.factor > 1:
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_context))
        return 1.0

    def frequencies(self, dim: int, rope_theta: float, *, seq_len: int | None = None) -> RopeFrequencies:
        """The frequency table and the temperature for a model with `dim` rotary dimensions a head.

        `seq_len` (tokens) matters to longrope alone: its long factors apply beyond the original
        context, and when no length is given. Raises RopeScalingError.
        """
        _check_rotary_embedding(dim, rope_theta)
        return RopeFrequencies(self._inv_freq(dim, float(rope_theta), seq_len), self.temperature())

    def interpolation(self, dim: int, rope_theta: float) -> np.ndarray:
        """How far each frequency is interpolated: 0 left alone (extrapolated), 1 divided by s.

        Shape (dim // 2,), float64. By-parts and yarn: 1 - gamma of Eq. 19; other methods: computed
        back from the frequencies. Raises RopeScalingError.
        """
        _check_rotary_embedding(dim, rope_theta)
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
            gamma = self._ramp(dim, rope_theta)
            return (1 - gamma) * theta / self.factor + gamma * theta
        if self.method == "llama3":
            return self._llama3(theta)
        if self.method == "explicit":
            return self._table("inv_freq", dim)
        is_long = seq_len is None or seq_len > self.original_context
        return theta / self._table("long_factor" if is_long else "short_factor", dim)

    def _ramp(self, dim: int, rope_theta: float) -> np.ndarray:
        """gamma of Eq. 18 and 19: 1 where a dimension is left alone, 0 where it is interpolated."""
        context = self.original_context
        if self.ramp == "rotations":
            rotations = context * inverse_frequencies(dim, rope_theta) / (2 * math.pi)
            return np.clip((rotations - self.beta_slow) / (self.beta_fast - self.beta_slow), 0, 1)
        low = rotations_to_index(self.beta_fast, dim, rope_theta, context)
        high = rotations_to_index(self.beta_slow, dim, rope_theta, context)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        # crossed bounds mean something else to transformers than to ggml, and nothing to the paper
        ramp = f"with which the ramp, of dimensions {low:g} to {high:g}, does not end before it begins"
        _require("original_max_position_embeddings", context, low <= high, f"one {ramp}")
        if low == high:
            high += 0.001  # as in the reference code: a step rather than a division by zero
        return 1 - np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)

    def _llama3(self, theta: np.ndarray) -> np.ndarray:
        rotations = self.original_context * theta / (2 * math.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        gamma = np.clip((rotations - low) / (high - low), 0, 1)
        return (1 - gamma) * theta / self.factor + gamma * theta

    def _table(self, name: str, dim: int) -> np.ndarray:
        values = getattr(self, name)
        expected = f"{dim // 2} numbers for {dim} rotary dimensions"
        _require(name, f"{len(values)} numbers", len(values) == dim // 2, expected)
        return np.array(values, dtype=np.float64)


def inverse_frequencies(dim: int, rope_theta: float) -> np.ndarray:
    """theta_i = rope_theta^(-2i/dim): radians per position, float64, shape (dim // 2,)."""
    return float(rope_theta) ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)


def ntk_base(rope_theta: float, factor: float, dim: int) -> float:
    """NTK-aware b' = b * s^(dim/(dim-2)) (Eq. 16): the slowest dimension is slowed s times."""
    _require("dim", dim, dim > 2, "more than 2 rotary dimensions for the ntk method")
    return rope_theta * factor ** (dim / (dim - 2))


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """sqrt(1/t) = 0.1 mscale ln(s) + 1 (Eq. 22): YaRN's own factor on q and k; 1 for s <= 1."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def ggml_attn_factor(attention_factor: float, factor: float) -> float:
    """The `attn_factor` that ggml's rope op needs for a total of `attention_factor`.

    Under YaRN the op itself multiplies by yarn_mscale(factor) (ggml/src/ggml-cpu/ops.cpp, rope_yarn).
    """
    return attention_factor / yarn_mscale(factor)


def extended_length(factor: float, original_context: int) -> int:
    """L' = s L in tokens, to the nearest: float32's 1.1 times 10 is 11."""
    return round(factor * original_context)


def rope_op_has(scaling: RopeScaling) -> bool:
    """Whether ggml's rope op can do `scaling` by its operands; otherwise it needs a table of frequencies."""
    if scaling.has_ramp:
        return scaling.ramp == "index" and scaling.truncate
    return scaling.method in ("none", "linear", "ntk")


def rotations_to_index(rotations: float, dim: int, rope_theta: float, context: int) -> float:
    """The (fractional) index of the frequency that turns `rotations` times within `context` tokens."""
    return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(rope_theta))


def _require(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise RopeScalingError(f"rope scaling {name} must be {expected}, got {value!r}")


def _check_rotary_embedding(dim: object, rope_theta: object) -> None:
    _require("dim", dim, isinstance(dim, int) and dim > 0 and dim % 2 == 0, "an even number > 0")
    _require("rope_theta", rope_theta, _is_number(rope_theta) and rope_theta > 1, "a number > 1")


# GGUF and ggml hold these values as float32. Refusing what float32 cannot hold also keeps every
# formula above finite in float64: no JSON number can overflow one of them.
def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _FLOAT32_MAX


def _is_positive(value: object) -> bool:
    return _is_number(value) and value >= _FLOAT32_TINY


def _is_factor_list(value: object) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(_is_positive(v) for v in value)
