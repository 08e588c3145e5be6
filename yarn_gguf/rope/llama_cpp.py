"""Give a scaling to llama.cpp: as parameters of a context, or as a table of frequencies."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from yarn_gguf.rope.formulas import ggml_attn_factor, ntk_base
from yarn_gguf.rope.model import RotaryEmbedding
from yarn_gguf.rope.scaling import RopeScaling, rope_op_has

_TYPE_NONE, _TYPE_LINEAR, _TYPE_YARN = 0, 1, 2  # enum llama_rope_scaling_type in llama.h


class FrequencyTable(NamedTuple):
    """The operands of yarn_gguf_set_rope_frequencies.

    inv_freq: radians per position, float64, shape (rotary dimensions // 2,).
    factor: s.
    attention_factor: the whole factor on q and on k.
    """

    inv_freq: np.ndarray
    factor: float
    attention_factor: float


def context_arguments(scaling: RopeScaling, model: RotaryEmbedding) -> dict[str, Any]:
    """Return the arguments of llama_cpp.Llama that ask for `scaling`.

    If they cannot express it (rope_op_has is False), they ask for plain rope, and the context needs a
    frequency table. Raises RopeScalingError as RopeScaling.check does.
    """
    scaling.check(model.dim, model.rope_theta)
    arguments: dict[str, Any] = {
        "rope_scaling_type": _TYPE_NONE,
        "rope_freq_base": model.rope_theta,
        "rope_freq_scale": 1.0,
        "yarn_ext_factor": 0.0,
        "yarn_attn_factor": 1.0,
    }
    if not rope_op_has(scaling):
        return arguments
    arguments["yarn_attn_factor"] = scaling.temperature()
    if scaling.method == "ntk":
        arguments["rope_freq_base"] = ntk_base(model.rope_theta, scaling.factor, model.dim)
    if scaling.method == "linear":
        arguments["rope_scaling_type"] = _TYPE_LINEAR
        arguments["rope_freq_scale"] = 1 / scaling.factor
    if scaling.has_ramp:
        arguments |= {
            "rope_scaling_type": _TYPE_YARN,
            "rope_freq_scale": 1 / scaling.factor,
            "yarn_orig_ctx": scaling.original_context,
            "yarn_ext_factor": 1.0,
            "yarn_attn_factor": ggml_attn_factor(scaling.temperature(), scaling.factor),
            "yarn_beta_fast": scaling.beta_fast,
            "yarn_beta_slow": scaling.beta_slow,
        }
    return arguments


def frequency_table(scaling: RopeScaling, model: RotaryEmbedding, n_ctx: int) -> FrequencyTable:
    """Return the frequency table of `scaling` for a context of `n_ctx` tokens.

    Only LongRoPE's table depends on `n_ctx`. Raises RopeScalingError as RopeScaling.check does.
    """
    inv_freq, attention_factor = scaling.frequencies(model.dim, model.rope_theta, seq_len=n_ctx)
    return FrequencyTable(inv_freq, scaling.factor, attention_factor)
