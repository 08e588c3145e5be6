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
    """The text model. A checkpoint with vision is converted without its vision tower."""

    model_arch = gguf.MODEL_ARCH.GEMMA3
    # transformers' defaults, which the checkpoints with vision leave out
    defaults = MappingProxyType(
        {
            "tie_word_embeddings": True,
            "vocab_size": 262208,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
        }
    )

    def arrange(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        vision = ("vision_tower.", "multi_modal_projector.")
        return super().arrange(
            {
                name.removeprefix("language_model."): tensor
                for name, tensor in tensors.items()
                if not name.startswith(vision)
            }
        )
