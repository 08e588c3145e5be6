"""StarCoder2: biases everywhere, layer norms, and two instead of three projections in the MLP."""

from __future__ import annotations

from types import MappingProxyType

import gguf

from yarn_gguf.convert.arch.base import Architecture
from yarn_gguf.rope.hf_config import Config


class StarCoder2(Architecture):
    model_arch = gguf.MODEL_ARCH.STARCODER2
    defaults = MappingProxyType({"tie_word_embeddings": True})

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.require("use_bias", True)

    def add_attention_keys(self, writer: gguf.GGUFWriter) -> None:
        writer.add_head_count_kv(self.kv_heads)
        writer.add_layer_norm_eps(self.config.number("norm_epsilon"))
