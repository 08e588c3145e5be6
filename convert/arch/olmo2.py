"""OLMo 2 and OLMo 3. OLMo 3 has layers with a sliding window."""

from __future__ import annotations

from types import MappingProxyType

import gguf

from yarn_gguf.convert.arch.base import Architecture, all_but_every
from yarn_gguf.convert.arch.config_keys import SILU, Assumptions


class Olmo2(Architecture):
    model_arch = gguf.MODEL_ARCH.OLMO2
    needs_output = True
    model_classes = ("Olmo2ForCausalLM",)

    @property
    def assumed(self) -> Assumptions:
        only = {"hidden_act": SILU, "attention_bias": (False,)}
        return super().assumed | only


class Olmo3(Olmo2):
    model_classes = ("Olmo3ForCausalLM",)
    has_windows = True
    defaults = MappingProxyType({"sliding_window": 4096})

    def add_attention_keys(self, writer: gguf.GGUFWriter) -> None:
        super().add_attention_keys(writer)
        if any(self.windows):
            self.add_sliding_window(writer)

    def default_window_layers(self) -> list[bool]:
        return all_but_every(4, self.layers)
