"""Qwen2, Qwen3, and Qwen3 with experts."""

from __future__ import annotations

from types import MappingProxyType

import gguf

from yarn_gguf.convert.arch.base import Architecture, stack_experts
from yarn_gguf.convert.arch.config_keys import SILU, Assumptions
from yarn_gguf.convert.tensor import Tensor

_WINDOW = {"use_sliding_window": False, "sliding_window": 4096}


class Qwen2(Architecture):
    model_arch = gguf.MODEL_ARCH.QWEN2
    model_classes = ("Qwen2ForCausalLM",)
    converted = Architecture.converted | {"use_sliding_window", "max_window_layers"}
    defaults = MappingProxyType(_WINDOW | {"max_window_layers": 28, "num_key_value_heads": 32})

    @property
    def assumed(self) -> Assumptions:
        return super().assumed | {"hidden_act": SILU}

    def default_window_layers(self) -> list[bool]:
        first = self.config.number("max_window_layers")
        return [layer >= first for layer in range(self.layers)]


class Qwen3(Qwen2):
    model_arch = gguf.MODEL_ARCH.QWEN3
    model_classes = ("Qwen3ForCausalLM",)

    @property
    def assumed(self) -> Assumptions:
        return super().assumed | {"attention_bias": (False,)}


class Qwen3Moe(Architecture):
    model_arch = gguf.MODEL_ARCH.QWEN3MOE
    model_classes = ("Qwen3MoeForCausalLM",)
    converted = Architecture.converted | {
        *(
            "use_sliding_window",
            "moe_intermediate_size",
            "num_experts",
            "num_local_experts",
            "num_experts_per_tok",
        ),
    }
    defaults = MappingProxyType(_WINDOW | {"norm_topk_prob": False, "num_key_value_heads": 4})

    @property
    def assumed(self) -> Assumptions:
        return super().assumed | {
            "hidden_act": SILU,
            "attention_bias": (False,),
            "norm_topk_prob": (True,),
            "decoder_sparse_step": (1,),
            "mlp_only_layers": ([], None),
        }

    def add_attention_keys(self, writer: gguf.GGUFWriter) -> None:
        super().add_attention_keys(writer)
        writer.add_expert_feed_forward_length(self.config.whole("moe_intermediate_size"))
        # transformers 5 saves num_experts of published checkpoints as num_local_experts
        self.add_experts(writer, "num_experts", "num_local_experts")

    def arrange(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return stack_experts(tensors)
