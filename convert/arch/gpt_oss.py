"""gpt-oss: attention sinks, and experts with gate and up projections interleaved."""

from __future__ import annotations

from types import MappingProxyType

import gguf

from yarn_gguf.convert.arch.base import Architecture, all_but_every
from yarn_gguf.convert.arch.config_keys import SILU, Assumptions
from yarn_gguf.convert.tensor import Tensor


class GptOss(Architecture):
    model_arch = gguf.MODEL_ARCH.GPT_OSS
    needs_output = True
    model_classes = ("GptOssForCausalLM",)
    has_windows = True
    converted = Architecture.converted | {"num_local_experts", "num_experts", "num_experts_per_tok"}
    defaults = MappingProxyType({"num_key_value_heads": 8, "sliding_window": 128})

    @property
    def assumed(self) -> Assumptions:
        return super().assumed | {
            "hidden_act": SILU,
            "attention_bias": (True,),
            "swiglu_alpha": (1.702,),
            "swiglu_limit": (7.0,),
        }

    def default_window_layers(self) -> list[bool]:
        return all_but_every(2, self.layers)

    def add_attention_keys(self, writer: gguf.GGUFWriter) -> None:
        super().add_attention_keys(writer)
        self.add_sliding_window(writer)
        writer.add_expert_feed_forward_length(self.config.whole("intermediate_size"))
        self.add_experts(writer, "num_local_experts", "num_experts")

    def arrange(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        arranged = {}
        for name, tensor in tensors.items():
            base, is_bias = name.removesuffix("_bias"), name.endswith("_bias")
            suffix = ".bias" if is_bias else ".weight"
            if base.endswith("experts.gate_up_proj"):
                for offset, part in enumerate(("gate_proj", "up_proj")):
                    own_name = base.replace("gate_up_proj", part) + suffix
                    arranged[own_name] = _every_second(tensor, offset, is_bias)
            elif base.endswith("experts.down_proj"):
                arranged[base + suffix] = tensor if is_bias else _transposed(tensor)
            elif name.endswith(".sinks"):
                arranged[name + ".weight"] = tensor
            else:
                arranged[name] = tensor
        return arranged


def _transposed(tensor: Tensor) -> Tensor:
    """Return (experts, outputs, inputs) from (experts, inputs, outputs)."""
    experts, inputs, outputs = tensor.shape
    return tensor.map(lambda data: data.swapaxes(1, 2), (experts, outputs, inputs), groups=experts)


def _every_second(tensor: Tensor, offset: int, is_bias: bool) -> Tensor:
    """Return every second output from `offset` on; weights also transposed."""
    shape = (*tensor.shape[:-1], tensor.shape[-1] // 2)
    half = tensor.map(lambda data: data[..., offset::2], shape, groups=shape[0])
    return half if is_bias else _transposed(half)
