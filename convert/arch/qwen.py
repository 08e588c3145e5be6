"""Qwen2, Qwen3, and Qwen3 with experts."""

from __future__ import annotations

from types import MappingProxyType

import gguf

from yarn_gguf.convert.arch.base import Architecture, stack_experts
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.rope.hf_config import Config


class Qwen2(Architecture):
    model_arch = gguf.MODEL_ARCH.QWEN2
    defaults = MappingProxyType({"use_sliding_window": False})


class Qwen3(Architecture):
    model_arch = gguf.MODEL_ARCH.QWEN3
    defaults = MappingProxyType({"use_sliding_window": False})

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.require("attention_bias", False)


class Qwen3Moe(Qwen3):
    model_arch = gguf.MODEL_ARCH.QWEN3MOE

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.require("norm_topk_prob", True)
        self.require("decoder_sparse_step", 1)
        self.require("mlp_only_layers", [])

    def add_attention_keys(self, writer: gguf.GGUFWriter) -> None:
        super().add_attention_keys(writer)
        writer.add_expert_feed_forward_length(self.config.whole("moe_intermediate_size"))
        # transformers 5 saves num_experts of published checkpoints as num_local_experts
        experts = self.config.values.get("num_local_experts")
        writer.add_expert_count(self.config.whole("num_experts", experts))
        writer.add_expert_used_count(self.config.whole("num_experts_per_tok"))

    def arrange(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return stack_experts(tensors)
