"""Llama and Mistral: ggml keeps a rotary pair in neighbouring rows."""

from __future__ import annotations

from functools import partial

import gguf
import numpy as np

from yarn_gguf.convert.arch.base import Architecture, suffix_map
from yarn_gguf.convert.tensor import Tensor


class Llama(Architecture):
    model_arch = gguf.MODEL_ARCH.LLAMA

    def arrange(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        query, key = partial(pair_neighbours, heads=self.heads), partial(pair_neighbours, heads=self.kv_heads)
        changes = {"q_proj.weight": query, "q_proj.bias": query, "k_proj.weight": key, "k_proj.bias": key}
        return suffix_map(tensors, changes)


def pair_neighbours(tensor: Tensor, heads: int) -> Tensor:
    """Reorder rows: transformers' rotary pairs (i, i + dim/2) become (2i, 2i + 1), ggml's "normal" order."""

    def reorder_head(data: np.ndarray) -> np.ndarray:
        return data.reshape(2, -1, *data.shape[1:]).swapaxes(0, 1).reshape(data.shape)

    return tensor.map(reorder_head, groups=heads)
