"""The names of the GGUF keys that hold a rope scaling. Their meaning: docs/gguf-keys.md."""

from __future__ import annotations

from yarn_gguf.rope.model import RotaryEmbedding

SCALING_TYPES = ("none", "linear", "yarn", "longrope")  # any other ends an unpatched llama.cpp's process

# To llama.cpp the method ntk is a new freq_base. These two keep the base and the factor that it came from.
ORIGINAL_FREQ_BASE = "yarn_gguf.original_freq_base"
NTK_FACTOR = "yarn_gguf.ntk_factor"

# suffixes after "{arch}."
_SUFFIXES = (
    "context_length",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_ramp",
    "rope.scaling.yarn_truncate",
    "rope.scaling.low_freq_factor",
    "rope.scaling.high_freq_factor",
    "rope.scaling.dynamic",
    "rope.scaling.dynamic_ntk_factor",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_mscale",
    "rope.scaling.yarn_mscale_all_dim",
    "rope.scaling.inv_freq",
    "rope.scaling.short_factor",
    "rope.scaling.long_factor",
    "rope.scaling.longrope_factor",
    "rope.scaling.llama3_factor",
)


def owned_keys(model: RotaryEmbedding) -> set[str]:
    """Return every key that a scaling may set or remove."""
    return {ORIGINAL_FREQ_BASE, NTK_FACTOR, *(model.key(suffix) for suffix in _SUFFIXES)}
