"""Facts about llama.cpp's architectures that decide how a rope scaling is stored, read and computed.

This is the only Python table of such facts. tests/rope/test_architectures.py reads them off the sources of
the pinned llama.cpp and compares. Facts that the patched library needs are in C++:
see cpp_patches/src/llama-rope-archs.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Treatment = Literal["uses", "ignores", "refuses"]


@dataclass(frozen=True)
class Architecture:
    """How an unpatched llama.cpp treats the rope keys and rope tensors of one architecture.

    "Window layers" are layers with a sliding window. In the architectures named here they stay unscaled.

    has_rope: False if llama_model_rope_type says none, or if positions are learned embeddings.
    freq_factors: the treatment of the tensor rope_freqs (Llama 3.1). "uses"; "ignores": loads it, but its
        graph has no use for it; "refuses": fails to load a file that has it.
    longrope_factors: the same for the tensors rope_factors_long and rope_factors_short (LongRoPE).
    log_multiplier_scale: the loader multiplies the key yarn_log_multiplier by this to get mscale_all_dim.
        0 if it does not read the key.
    log_multiplier_is_mscale: whether mscale equals mscale_all_dim. Otherwise mscale is 1.
    beta_fast: the default of the key yarn_beta_fast.
    yarn_attn_factor_is_operand: whether the key yarn_attn_factor holds the operand attn_factor of ggml's rope
        op. Otherwise it holds the whole attention factor.
    reads_betas: whether the loader reads the keys yarn_beta_fast and yarn_beta_slow.
    reads_ext_factor: whether the loader reads the key yarn_ext_factor.
    scales_logits: whether the graph multiplies all attention logits by the square of YaRN's temperature,
        including the part of each head that is not rotated (compressed attention, MLA).
    windows_get_attn_factor: whether the graph passes the scaled layers' attn_factor to window layers.
    windows_get_base: whether the graph passes the scaled layers' freq_base to window layers.
    """

    has_rope: bool = True
    freq_factors: Treatment = "refuses"
    longrope_factors: Treatment = "refuses"
    log_multiplier_scale: float = 0.0
    log_multiplier_is_mscale: bool = False
    beta_fast: float = 32.0
    yarn_attn_factor_is_operand: bool = False
    reads_betas: bool = False
    reads_ext_factor: bool = False
    scales_logits: bool = False
    windows_get_attn_factor: bool = False
    windows_get_base: bool = False

    def mscale_beside(self, mscale_all_dim: float) -> float:
        """Return the mscale that llama.cpp assumes in a file with a log multiplier of `mscale_all_dim`."""
        return mscale_all_dim if self.log_multiplier_is_mscale else 1.0


_ORDINARY = Architecture()

ARCHITECTURES = {
    "apertus": Architecture(freq_factors="uses", longrope_factors="uses"),
    "arcee": Architecture(freq_factors="uses"),
    "arwkv7": Architecture(has_rope=False),
    "bert": Architecture(has_rope=False),
    "bloom": Architecture(has_rope=False),
    "clip": Architecture(has_rope=False),
    "cogvlm": Architecture(freq_factors="ignores"),
    "deci": Architecture(freq_factors="uses", longrope_factors="uses"),
    "deepseek2": Architecture(log_multiplier_scale=10.0, log_multiplier_is_mscale=True, scales_logits=True),
    "deepseek2-ocr": Architecture(scales_logits=True),
    "deepseek32": Architecture(log_multiplier_scale=10.0, scales_logits=True),
    "dflash": Architecture(freq_factors="uses"),
    "eagle3": Architecture(freq_factors="uses"),
    "exaone": Architecture(freq_factors="uses"),
    "exaone-moe": Architecture(freq_factors="uses"),
    "exaone4": Architecture(freq_factors="uses"),
    "falcon-h1": Architecture(freq_factors="ignores"),
    "gemma-embedding": Architecture(windows_get_attn_factor=True),
    "gemma3": Architecture(windows_get_attn_factor=True),
    "gemma3n": Architecture(windows_get_attn_factor=True),
    "gemma4": Architecture(freq_factors="uses", windows_get_attn_factor=True),
    "gemma4-assistant": Architecture(freq_factors="uses", windows_get_attn_factor=True),
    "glm-dsa": Architecture(scales_logits=True),
    "glm5-next": Architecture(has_rope=False),
    "gpt2": Architecture(has_rope=False),
    "gptj": Architecture(has_rope=False),
    "granite": Architecture(freq_factors="uses", longrope_factors="uses"),
    "granite_swa": Architecture(freq_factors="uses", longrope_factors="uses"),
    "granitehybrid": Architecture(freq_factors="uses"),
    "granitemoe": Architecture(freq_factors="uses", longrope_factors="uses"),
    "grok": Architecture(
        beta_fast=8.0, yarn_attn_factor_is_operand=True, reads_betas=True, reads_ext_factor=True
    ),
    "jais": Architecture(has_rope=False),
    "jamba": Architecture(has_rope=False),
    "jina-bert-v2": Architecture(has_rope=False),
    "kimi-k3": Architecture(has_rope=False),
    "kimi-linear": Architecture(has_rope=False),
    "llada": Architecture(freq_factors="ignores"),
    "llama": Architecture(freq_factors="uses", longrope_factors="uses"),
    "llama-embed": Architecture(freq_factors="uses", longrope_factors="uses"),
    "llama4": Architecture(freq_factors="uses"),
    "mamba": Architecture(has_rope=False),
    "mamba2": Architecture(has_rope=False),
    "mellum": Architecture(windows_get_base=True),
    "mimo2": Architecture(windows_get_attn_factor=True),
    "minicpm": Architecture(freq_factors="uses", longrope_factors="uses"),
    "minicpm3": Architecture(longrope_factors="uses"),
    "mistral3": Architecture(
        freq_factors="uses", longrope_factors="uses", log_multiplier_scale=1.0, reads_betas=True
    ),
    "mistral4": Architecture(log_multiplier_scale=10.0, scales_logits=True),
    "modern-bert": Architecture(windows_get_attn_factor=True),
    "mpt": Architecture(has_rope=False),
    "muse-glimmer": Architecture(windows_get_attn_factor=True),
    "nanbeige": Architecture(freq_factors="uses"),
    "nemotron_h": Architecture(has_rope=False),
    "nemotron_h_moe": Architecture(has_rope=False),
    "olmo2": Architecture(windows_get_base=True),
    "pangu-embedded": Architecture(freq_factors="ignores", longrope_factors="ignores"),
    "phi3": Architecture(longrope_factors="uses"),
    "phimoe": Architecture(longrope_factors="uses"),
    "plamo3": Architecture(windows_get_attn_factor=True),
    "refact": Architecture(has_rope=False),
    "rwkv6": Architecture(has_rope=False),
    "rwkv6qwen2": Architecture(has_rope=False),
    "rwkv7": Architecture(has_rope=False),
    "starcoder": Architecture(has_rope=False),
    "step35": Architecture(freq_factors="uses", longrope_factors="uses", windows_get_attn_factor=True),
    "t5": Architecture(has_rope=False),
    "t5encoder": Architecture(has_rope=False),
    "wavtokenizer-dec": Architecture(has_rope=False),
}


@dataclass(frozen=True)
class Windows:
    """The layers with a sliding window of one architecture, as its loader finds them.

    period: of so many layers, one has full attention, if the file has no attention.sliding_window_pattern. 0:
        the file must have it.
    full_first: whether that layer is the first of its period. Otherwise it is the last.
    size: tokens, if the file has no attention.sliding_window. 0: then all layers have full attention.
    fixed_size: tokens, whatever the key says, as long as it is not 0. 0: as the key says.
    has_own_base: without rope.freq_base_swa the base is 10000. Otherwise it is that of the other layers.
    scaled: whether they are scaled like the other layers.
    rotates_full: whether the other layers have a rotary embedding.
    """

    period: int = 0
    full_first: bool = False
    size: int = 0
    fixed_size: int = 0
    has_own_base: bool = False
    scaled: bool = False
    rotates_full: bool = True


# Architectures without a row have no layers with a sliding window, or more kinds of layers than these values
# can tell (VARIED). The patched library's facts are in cpp_patches/src/llama-rope-archs.cpp.
WINDOWS = {
    "afmoe": Windows(4, scaled=True, rotates_full=False),
    "cohere2": Windows(4, scaled=True, rotates_full=False),
    "exaone-moe": Windows(4, size=128, scaled=True, rotates_full=False),
    "gemma-embedding": Windows(6, has_own_base=True),
    "gemma2": Windows(2, size=4096, scaled=True),
    "gemma3": Windows(6, has_own_base=True),
    "gemma3n": Windows(5, has_own_base=True),
    "gemma4": Windows(has_own_base=True),
    "gemma4-assistant": Windows(has_own_base=True),
    "gpt-oss": Windows(2, scaled=True),
    "laguna": Windows(4, full_first=True),
    "llama4": Windows(4, size=8192, fixed_size=8192, scaled=True, rotates_full=False),
    "maple": Windows(scaled=True),
    "mellum": Windows(4),
    "mimo2": Windows(has_own_base=True),
    "modern-bert": Windows(3, full_first=True, has_own_base=True),
    "muse-glimmer": Windows(4, rotates_full=False),
    "olmo2": Windows(4),
    "plamo3": Windows(8, has_own_base=True),
    "smallthinker": Windows(4, full_first=True, fixed_size=4096, scaled=True, rotates_full=False),
    "spark2_5": Windows(scaled=True),
    "step35": Windows(has_own_base=True),
}
# other kinds of layers: recurrent ones, or a loader that tells windows by more than their pattern
VARIED = ("cohere2moe", "deepseek4", "dflash", "dots3note", "exaone4", "granite_swa", "lfm2", "lfm2moe")
UNROTATED_PERIOD = {"smollm3": 4}  # the last layer of each period has no rotary embedding


def architecture(name: str) -> Architecture:
    """Return the facts about the architecture `name`; those of an ordinary one if the table has no row."""
    return ARCHITECTURES.get(name, _ORDINARY)
