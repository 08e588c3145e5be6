"""Tensors of rope factors: the form in which upstream's converter writes Llama 3.1's scaling and LongRoPE.

A factor divides an unscaled frequency: theta_i / inv_freq_i. Sources: generate_extra_tensors of upstream's
converter, and get_rope_factors in llama-model.cpp. The C++ twin is cpp_patches/src/llama-rope-factors.h.
"""

from __future__ import annotations

import numpy as np

from yarn_gguf.errors import GGUFError, RopeScalingError
from yarn_gguf.gguf.header import AGAIN, Header, read_floats
from yarn_gguf.rope.architectures import architecture
from yarn_gguf.rope.formulas import inverse_frequencies
from yarn_gguf.rope.model import RotaryEmbedding, StoredRope
from yarn_gguf.rope.scaling import RopeScaling

FREQ_FACTORS = "rope_freqs.weight"
LONG_FACTORS = "rope_factors_long.weight"
SHORT_FACTORS = "rope_factors_short.weight"
NAMES = (FREQ_FACTORS, LONG_FACTORS, SHORT_FACTORS)

_STILL = 1e20  # upstream's converter writes 1e30 for a pair of dimensions that does not rotate (Gemma 4)
_LLAMA3_CONTEXTS = tuple(2**power for power in range(5, 18))  # tokens
_LLAMA3_RTOL = 1e-5  # upstream computes the tensor in float32


def read_freq_factors(model: StoredRope, ones: bool = False) -> np.ndarray | None:
    """Return the factors of rope_freqs.weight, float64 (dim // 2,); None if nothing is scaled by them.

    A pair of dimensions that does not rotate has the factor 1 here. ones: factors of 1 count as well.
    Raises RopeScalingError for factors that no frequency has, GGUFError, OSError.
    """
    if architecture(model.arch).freq_factors != "uses":
        return None
    found = read_floats(model.header, FREQ_FACTORS)
    if found is None:
        return None
    factors = np.array(found)
    if len(factors) != model.dim // 2 or not ((factors > 0) & np.isfinite(factors)).all():
        raise RopeScalingError(f"the tensor {FREQ_FACTORS} must hold {model.dim // 2} numbers > 0")
    factors[factors >= _STILL] = 1.0
    return None if (factors == 1).all() and not ones else factors


def read_longrope(header: Header, ones: bool = False) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return LongRoPE's short and long factors from their tensors; None if these do not scale.

    ones: factors of 1 count as well. Raises GGUFError, OSError.
    """
    short, long = read_floats(header, SHORT_FACTORS), read_floats(header, LONG_FACTORS)
    if long is None:
        return None
    if short is None:
        raise GGUFError(f"{header.path}: of {SHORT_FACTORS} and {LONG_FACTORS}, one is missing: {AGAIN}")
    return None if {*short, *long} == {1.0} and not ones else (short, long)


def llama3_of(factors: np.ndarray, model: RotaryEmbedding) -> RopeScaling | None:
    """Return the llama3 scaling whose factors these are, with Llama 3.1's own bounds; None if there is none.

    factors: (dim // 2,). The tensor does not say its original context: usual ones are tried.
    """
    for context in _LLAMA3_CONTEXTS:
        scaling = RopeScaling(
            "llama3", float(factors.max()), context, low_freq_factor=1.0, high_freq_factor=4.0
        )
        if np.allclose(_divisors(scaling, model), factors, rtol=_LLAMA3_RTOL, atol=0):
            return scaling
    return None


def divided(scaling: RopeScaling, factors: np.ndarray, model: RotaryEmbedding, context: int) -> RopeScaling:
    """Return the scaling of a file whose keys ask for `scaling` and whose tensor divides by `factors` too.

    context: tokens that the file is made for. Raises RopeScalingError if they make no sense together.
    """
    is_alone = scaling.method == "none" and scaling.attention_factor is None
    if is_alone and factors.max() > 1 and (found := llama3_of(factors, model)) is not None:
        return found
    inv_freq = scaling.frequencies(model.dim, model.rope_theta).inv_freq / factors
    factor = max(1.0, float(factors.max()) if scaling.factor == 1 else scaling.factor)
    original = scaling.original_max_position_embeddings or max(1, round(context / factor))
    temperature = scaling.temperature()
    return RopeScaling(
        "explicit",
        factor,
        original,
        attention_factor=None if temperature == 1 else temperature,
        inv_freq=tuple(inv_freq.tolist()),
    )


def factor_tensors(model: RotaryEmbedding, scaling: RopeScaling) -> dict[str, np.ndarray]:
    """Return the tensors by which an unpatched llama.cpp scales so, float32 (dim // 2,) each.

    Empty where its keys say it, or where the architecture has no use for such tensors.
    """
    if not has_tensors(model, scaling):
        return {}
    if scaling.method == "llama3":
        return {FREQ_FACTORS: _divisors(scaling.as_float32(), model).astype(np.float32)}
    lists = {LONG_FACTORS: scaling.long_factor, SHORT_FACTORS: scaling.short_factor}
    return {name: np.array(values, np.float32) for name, values in lists.items()}


def has_tensors(model: RotaryEmbedding, scaling: RopeScaling) -> bool:
    """Return whether a file holds this scaling in tensors."""
    facts = architecture(model.arch)
    treatments = {"llama3": facts.freq_factors, "longrope": facts.longrope_factors}
    return treatments.get(scaling.method) == "uses"


def tensors_to_change(model: StoredRope, scaling: RopeScaling) -> dict[str, np.ndarray | None]:
    """Return the tensors that a file needs for a new scaling; None for one to leave out.

    Factors of pairs of dimensions that do not rotate stay. Raises GGUFError, OSError.
    """
    found: dict[str, np.ndarray | None] = {}
    for name in NAMES:
        if (values := read_floats(model.header, name)) is not None:
            factors = np.array(values, np.float32)
            is_still = factors >= _STILL
            found[name] = np.where(is_still, factors, np.float32(1)) if is_still.any() else None
    return found | factor_tensors(model, scaling)


def _divisors(scaling: RopeScaling, model: RotaryEmbedding) -> np.ndarray:
    plain = inverse_frequencies(model.dim, model.rope_theta)
    return plain / scaling.frequencies(model.dim, model.rope_theta).inv_freq
