"""Llama and Mistral: ggml keeps a rotary pair in neighbouring rows."""

from __future__ import annotations

from functools import partial
from types import MappingProxyType

import gguf
import numpy as np

from yarn_gguf.convert.arch.base import Architecture, suffix_map
from yarn_gguf.convert.arch.config_keys import SILU, Assumptions
from yarn_gguf.convert.tensor import Tensor


class Llama(Architecture):
    model_arch = gguf.MODEL_ARCH.LLAMA
    model_classes: tuple[str, ...] = (
        "LlamaForCausalLM",
        "LLaMAForCausalLM",
    )  # the second is of the first releases
    converted = Architecture.converted | {"attention_bias", "mlp_bias"}

    @property
    def assumed(self) -> Assumptions:
        return super().assumed | {"hidden_act": SILU}

    def arrange(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        query, key = partial(pair_neighbours, heads=self.heads), partial(pair_neighbours, heads=self.kv_heads)
        changes = {"q_proj.weight": query, "q_proj.bias": query, "k_proj.weight": key, "k_proj.bias": key}
        return suffix_map(tensors, changes)


class Mistral(Llama):
    model_classes = ("MistralForCausalLM",)
    converted = Architecture.converted
    defaults = MappingProxyType({"num_key_value_heads": 8, "sliding_window": 4096})


def pair_neighbours(tensor: Tensor, heads: int) -> Tensor:
    """Reorder rows: transformers' rotary pairs (i, i + dim/2) become (2i, 2i + 1), ggml's "normal" order."""

    def reorder_head(data: np.ndarray) -> np.ndarray:
        return data.reshape(2, -1, *data.shape[1:]).swapaxes(0, 1).reshape(data.shape)

    return tensor.map(reorder_head, groups=heads)
