"""The formulas of rope scaling, on plain numbers and arrays; the only Python home of each.

Notation (docs/rope-scaling.md): ``dim`` rotary dimensions of a head; b = ``rope_theta``;
theta_i = b^(-2i/dim) in radians per position for i = 0 .. dim/2-1; L = ``context``, the original context in
tokens; s = ``factor``; gamma: 1 where a frequency is left alone, 0 where it is divided by s.
Sources: the YaRN paper (arXiv 2309.00071), whose equations are numbered here; transformers'
``modeling_rope_utils``.
"""

from __future__ import annotations

import math

import numpy as np

from yarn_gguf.rope.checks import require

_STEP_WIDTH = 0.001  # dimensions; the reference code's width for a ramp whose bounds coincide


def inverse_frequencies(dim: int, rope_theta: float) -> np.ndarray:
    """Return theta_i = b^(-2i/dim): radians per position, float64, shape (dim // 2,)."""
    return float(rope_theta) ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)


def ntk_base(rope_theta: float, factor: float, dim: int) -> float:
    """Return the NTK-aware base b' = b * s^(dim/(dim-2)) (Eq. 16). It slows the slowest dimension s times.

    Raises RopeScalingError for two rotary dimensions or fewer.
    """
    require("dim", dim, dim > 2, "more than 2 rotary dimensions for the ntk method")
    return rope_theta * factor ** (dim / (dim - 2))


def dynamic_ntk_factor(ntk_factor: float, factor: float) -> float:
    """Return the factor of NTK-aware scaling for a text that is `factor` times the original context.

    f l'/L - (f - 1), transformers' "dynamic" (modeling_rope_utils.py). ntk_factor: f.
    """
    return ntk_factor * factor - (ntk_factor - 1)


def blended(theta: np.ndarray, gamma: np.ndarray, factor: float) -> np.ndarray:
    """Return (1 - gamma) theta_i / s + gamma theta_i (Eq. 19), as an array of theta's shape."""
    return (1 - gamma) * theta / factor + gamma * theta


def rotations_ramp(theta: np.ndarray, context: int, slow: float, fast: float) -> np.ndarray:
    """Return gamma, linear in the number of rotations within L (Eq. 18), as an array of theta's shape.

    slow, fast: rotations at which gamma reaches 0 and 1. The paper calls them alpha and beta; Llama 3 calls
    them low_freq_factor and high_freq_factor.
    """
    rotations = context * theta / (2 * math.pi)
    return np.clip((rotations - slow) / (fast - slow), 0, 1)


def index_ramp(dim: int, low: float, high: float) -> np.ndarray:
    """Return gamma, linear in the dimension's index: 1 up to `low`, 0 from `high` on. Shape (dim // 2,).

    Equal bounds give a step instead of a division by zero, as in the reference code.
    """
    width = (high - low) or _STEP_WIDTH
    return 1 - np.clip((np.arange(dim // 2) - low) / width, 0, 1)


def rotations_to_index(rotations: float, dim: int, rope_theta: float, context: int) -> float:
    """Return the (fractional) index of the frequency that turns `rotations` times within L."""
    return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(rope_theta))


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """Return YaRN's own factor on q and on k, sqrt(1/t) = 0.1 mscale ln(s) + 1 (Eq. 22); 1 for s <= 1."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def mscale_ratio(factor: float, mscale: float, mscale_all_dim: float) -> float:
    """Return DeepSeek's factor on q and on k: the ratio of yarn_mscale for `mscale` and `mscale_all_dim`."""
    return yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)


def longrope_mscale(factor: float, context: int) -> float:
    """Return LongRoPE's factor on q and on k, sqrt(1 + ln(s) / ln(L)); 1 for s <= 1."""
    return math.sqrt(1 + math.log(factor) / math.log(context)) if factor > 1 else 1.0


def ggml_attn_factor(attention_factor: float, factor: float) -> float:
    """Return the operand `attn_factor` of ggml's rope op that makes the whole factor `attention_factor`.

    Under YaRN the op itself multiplies by yarn_mscale(factor) (ggml/src/ggml-cpu/ops.cpp, rope_yarn).
    """
    return attention_factor / yarn_mscale(factor)


def extended_length(factor: float, context: int) -> int:
    """Return L' = s L in tokens, rounded to the nearest: float32's 1.1 times 10 is 11."""
    return round(factor * context)
