"""One module for each architecture that can be converted, and the table of them by model_type."""

from __future__ import annotations

from yarn_gguf.convert.arch.base import Architecture
from yarn_gguf.convert.arch.deepseek import DeepSeekV2, DeepSeekV3
from yarn_gguf.convert.arch.gemma import Gemma2, Gemma3
from yarn_gguf.convert.arch.gpt_neox import GPTNeoX
from yarn_gguf.convert.arch.gpt_oss import GptOss
from yarn_gguf.convert.arch.granite import Granite
from yarn_gguf.convert.arch.llama import Llama, Mistral
from yarn_gguf.convert.arch.olmo2 import Olmo2, Olmo3
from yarn_gguf.convert.arch.phi3 import Phi3
from yarn_gguf.convert.arch.qwen import Qwen2, Qwen3, Qwen3Moe
from yarn_gguf.convert.arch.smollm3 import SmolLM3
from yarn_gguf.convert.arch.starcoder2 import StarCoder2
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config

ARCHITECTURES: dict[str, type[Architecture]] = {
    "llama": Llama,
    "mistral": Mistral,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "qwen3_moe": Qwen3Moe,
    "phi3": Phi3,
    "gemma2": Gemma2,
    "gemma3_text": Gemma3,
    "olmo2": Olmo2,
    "olmo3": Olmo3,
    "granite": Granite,
    "smollm3": SmolLM3,
    "gpt_neox": GPTNeoX,
    "starcoder2": StarCoder2,
    "deepseek_v2": DeepSeekV2,
    "deepseek_v3": DeepSeekV3,
    "gpt_oss": GptOss,
}


def architecture(config: Config) -> Architecture:
    """Return the architecture of the checkpoint with `config`. Raises ConversionError."""
    model_type = config.values.get("model_type")
    if model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConversionError(
            f"{config.path}: model_type {model_type!r} is not one of {known}: convert it with llama.cpp, and "
            "give that file the checkpoint's rope scaling with yarn-gguf extend --from-hf"
        )
    return ARCHITECTURES[model_type](config)
