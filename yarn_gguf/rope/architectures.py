"""Facts about llama.cpp's architectures that decide how a rope scaling is stored, read and computed.

The one Python table of such facts; tests/rope/test_architectures.py compares it with the pinned tree.
Facts that the patched library needs stand in C++: llama_rope_scaling_covers_swa in
cpp_patches/src/llama-rope-scaling.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp does with the rope keys and tensors of one architecture.

    has_rope: False where llama_model_rope_type says none, or where positions are learned embeddings.
    factor_tensors: what its loader and graph do with tensors of rope factors: "uses" them, "ignores" them
        (loaded, not used), or "refuses" a file that has one.
    log_multiplier_scale: its loader multiplies the key yarn_log_multiplier by this to get mscale_all_dim;
        0 where the key is not read.
    log_multiplier_mscale: whether its mscale is the multiplier, too; else mscale is 1.
    beta_fast: its loader's default.
    holds_operand: its key yarn_attn_factor holds ggml's operand, not the whole attention factor.
    reads_betas, reads_ext_factor: whether an unpatched loader reads yarn_beta_fast and yarn_beta_slow, and
        yarn_ext_factor.
    is_compressed: it has compressed attention (MLA), whose heads have an unrotated part.
    warms_windows: an unpatched graph gives the op's attn_factor to its unscaled sliding-window layers.
    scales_window_base: an unpatched graph gives the scaled base to its unscaled sliding-window layers, in
        files that have such layers.
    """

    has_rope: bool = True
    factor_tensors: str = "refuses"
    log_multiplier_scale: float = 0.0
    log_multiplier_mscale: bool = False
    beta_fast: float = 32.0
    holds_operand: bool = False
    reads_betas: bool = False
    reads_ext_factor: bool = False
    is_compressed: bool = False
    warms_windows: bool = False
    scales_window_base: bool = False


_NO_ROPE = Architecture(has_rope=False)
_USES_FACTORS = Architecture(factor_tensors="uses")
_IGNORES_FACTORS = Architecture(factor_tensors="ignores")
_WARMS_WINDOWS = Architecture(warms_windows=True)

ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(
        (
            *("arwkv7", "bert", "bloom", "clip", "gpt2", "gptj", "jais", "jamba", "jina-bert-v2"),
            *("kimi-linear", "mamba", "mamba2", "mpt", "nemotron_h", "nemotron_h_moe", "refact", "rwkv6"),
            *("rwkv6qwen2", "rwkv7", "starcoder", "t5", "t5encoder", "wavtokenizer-dec"),
        ),
        _NO_ROPE,
    ),
    **dict.fromkeys(
        (
            *("apertus", "arcee", "deci", "dflash", "eagle3", "exaone", "exaone-moe", "exaone4"),
            *("gemma4-assistant", "granite", "granite_swa", "granitehybrid", "granitemoe", "llama"),
            *("llama4", "minicpm", "minicpm3", "nanbeige", "phi3", "phimoe", "step35"),
        ),
        _USES_FACTORS,
    ),
    **dict.fromkeys(("cogvlm", "falcon-h1", "llada", "pangu-embedded"), _IGNORES_FACTORS),
    **dict.fromkeys(
        ("gemma3", "gemma3n", "gemma-embedding", "mimo2", "modern-bert", "plamo3"), _WARMS_WINDOWS
    ),
    "deepseek2": Architecture(log_multiplier_scale=10.0, log_multiplier_mscale=True, is_compressed=True),
    "deepseek32": Architecture(log_multiplier_scale=10.0, is_compressed=True),
    "gemma4": Architecture(factor_tensors="uses", warms_windows=True),
    "glm-dsa": Architecture(is_compressed=True),
    "grok": Architecture(beta_fast=8.0, holds_operand=True, reads_betas=True, reads_ext_factor=True),
    "mistral3": Architecture(factor_tensors="uses", log_multiplier_scale=1.0, reads_betas=True),
    "olmo2": Architecture(scales_window_base=True),
}

_ORDINARY = Architecture()


def architecture(name: str) -> Architecture:
    """Return the facts about the architecture `name`; those of an ordinary one if the table has no row."""
    return ARCHITECTURES.get(name, _ORDINARY)
