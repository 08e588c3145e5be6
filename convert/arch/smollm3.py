"""SmolLM3: Llama with no rotary embedding in every fourth layer."""

from __future__ import annotations

from types import MappingProxyType

import gguf

from yarn_gguf.convert.arch.base import all_but_every
from yarn_gguf.convert.arch.config_keys import Assumptions
from yarn_gguf.convert.arch.llama import Llama

_PERIOD = 4  # llama.cpp has no key for the layers without rotary embedding


class SmolLM3(Llama):
    model_arch = gguf.MODEL_ARCH.SMOLLM3
    model_classes = ("SmolLM3ForCausalLM",)
    defaults = MappingProxyType({"tie_word_embeddings": True, "num_key_value_heads": 4})

    @property
    def assumed(self) -> Assumptions:
        # 1 stands for a layer with rotary embedding
        rotary = [int(has_rope) for has_rope in all_but_every(_PERIOD, self.layers)]
        values = self.config.values
        # without effect beside the list
        interval = _PERIOD if values.get("no_rope_layers") is None else values.get("no_rope_layer_interval")
        return super().assumed | {
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "no_rope_layers": (rotary, None),
            "no_rope_layer_interval": (_PERIOD, interval),
            "use_sliding_window": (False,),
            "layer_types": (["full_attention"] * self.layers, None),
        }
