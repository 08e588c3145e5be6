"""Gemma 2 and 3: norms around a unit weight, and layers with a sliding window."""

from __future__ import annotations

from types import MappingProxyType

import gguf

from yarn_gguf.convert.arch.base import Architecture, all_but_every, suffix_map
from yarn_gguf.convert.arch.config_keys import GELU_TANH, Assumptions
from yarn_gguf.convert.tensor import Tensor

_DEFAULTS = {
    "tie_word_embeddings": True,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
}


class Gemma2(Architecture):
    model_arch = gguf.MODEL_ARCH.GEMMA2
    model_classes: tuple[str, ...] = ("Gemma2ForCausalLM",)
    has_windows = True
    converted = Architecture.converted | {
        *("final_logit_softcapping", "attn_logit_softcapping"),
    }
    defaults = MappingProxyType(_DEFAULTS | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0})
    scaled_by_width = 46  # layers of the model whose queries llama.cpp scales by hidden_size / heads

    @property
    def assumed(self) -> Assumptions:
        by_width = self.layers == self.scaled_by_width
        scalar = self.config.whole("hidden_size") // self.heads if by_width else self.head_dim
        return super().assumed | {
            "hidden_activation": GELU_TANH,
            "attention_bias": (False,),
            "query_pre_attn_scalar": (scalar,),
        }

    def default_window_layers(self) -> list[bool]:
        return all_but_every(2, self.layers)

    def add_attention_keys(self, writer: gguf.GGUFWriter) -> None:
        super().add_attention_keys(writer)
        self.add_sliding_window(writer)
        self.add_soft_caps(writer)

    def add_soft_caps(self, writer: gguf.GGUFWriter) -> None:
        """Write both soft caps. Raises RopeScalingError without one: llama.cpp has no Gemma 2 without."""
        writer.add_attn_logit_softcapping(self.soft_cap("attn_logit_softcapping"))
        writer.add_final_logit_softcapping(self.soft_cap("final_logit_softcapping"))

    def soft_cap(self, name: str) -> float:
        cap = self.config.values.get(name)
        if cap is None or self.config.number(name) <= 0:
            self.config.refuse(name, "a number > 0: llama.cpp always caps these logits")
        return self.config.number(name)

    def arrange(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return suffix_map(tensors, {"norm.weight": lambda tensor: tensor.map(lambda data: data + 1)})


class Gemma3(Gemma2):
    model_arch = gguf.MODEL_ARCH.GEMMA3
    model_classes = ("Gemma3ForCausalLM",)
    defaults = MappingProxyType(_DEFAULTS)
    converted = Gemma2.converted | {"sliding_window_pattern", "rope_local_base_freq"}
    scaled_by_width = 62

    @property
    def assumed(self) -> Assumptions:
        return super().assumed | {
            "attn_logit_softcapping": (None,),
        }

    def default_window_layers(self) -> list[bool]:
        return all_but_every(self.config.whole("sliding_window_pattern", 6), self.layers)

    def add_soft_caps(self, writer: gguf.GGUFWriter) -> None:
        if self.config.values.get("final_logit_softcapping") is not None:
            writer.add_final_logit_softcapping(self.soft_cap("final_logit_softcapping"))
