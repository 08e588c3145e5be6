"""Gemma 2 and 3: norms around a unit weight, and layers with a sliding window."""

from __future__ import annotations

from types import MappingProxyType

import gguf

from yarn_gguf.convert.arch.base import Architecture, suffix_map
from yarn_gguf.convert.tensor import Tensor


class Gemma2(Architecture):
    model_arch = gguf.MODEL_ARCH.GEMMA2
    has_windows = True
    defaults = MappingProxyType({"tie_word_embeddings": True})

    def add_attention_keys(self, writer: gguf.GGUFWriter) -> None:
        super().add_attention_keys(writer)
        self.add_sliding_window(writer)
        for name, add in (
            ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
            ("final_logit_softcapping", writer.add_final_logit_softcapping),
        ):
            if self.config.values.get(name):
                add(self.config.number(name))

    def arrange(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return suffix_map(tensors, {"norm.weight": lambda tensor: tensor.map(lambda data: data + 1)})


class Gemma3(Gemma2):
    model_arch = gguf.MODEL_ARCH.GEMMA3
