"""StarCoder2: biases everywhere, layer norms, and two instead of three projections in the MLP."""

from __future__ import annotations

from types import MappingProxyType

import gguf

from yarn_gguf.convert.arch.base import Architecture
from yarn_gguf.convert.arch.config_keys import CONVERTED, GELU_TANH, WITHOUT_EFFECT, Assumptions


class StarCoder2(Architecture):
    model_arch = gguf.MODEL_ARCH.STARCODER2
    model_classes = ("Starcoder2ForCausalLM",)
    converted = CONVERTED | {"norm_epsilon"}
    without_effect = WITHOUT_EFFECT | {"rms_norm_eps"}
    defaults = MappingProxyType({"tie_word_embeddings": True, "num_key_value_heads": 2})

    @property
    def assumed(self) -> Assumptions:
        return super().assumed | {"hidden_act": GELU_TANH, "use_bias": (True,)}

    def add_attention_keys(self, writer: gguf.GGUFWriter) -> None:
        writer.add_head_count_kv(self.kv_heads)
        writer.add_layer_norm_eps(self.config.number("norm_epsilon"))
