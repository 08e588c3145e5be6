"""SmolLM3: Llama with no rotary embedding in every fourth layer."""

from __future__ import annotations

from types import MappingProxyType

import gguf

from yarn_gguf.convert.arch.llama import Llama
from yarn_gguf.rope.hf_config import Config


class SmolLM3(Llama):
    model_arch = gguf.MODEL_ARCH.SMOLLM3
    defaults = MappingProxyType({"tie_word_embeddings": True})

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        # llama.cpp has no key for these layers; 1 stands for a layer with rotary embedding
        self.require("no_rope_layers", [int((layer + 1) % 4 != 0) for layer in range(self.layers)])
        self.require("use_sliding_window", False)
