"""gpt-oss: attention sinks, and experts with gate and up projections interleaved."""

from __future__ import annotations

import gguf

from yarn_gguf.convert.arch.base import Architecture
from yarn_gguf.convert.checkpoint import Tensor


class GptOss(Architecture):
    model_arch = gguf.MODEL_ARCH.GPT_OSS

    def add_attention_keys(self, writer: gguf.GGUFWriter) -> None:
        super().add_attention_keys(writer)
        self.add_sliding_window(writer)
        writer.add_expert_feed_forward_length(self.config.whole("intermediate_size"))
        writer.add_expert_count(self.config.whole("num_local_experts"))
        writer.add_expert_used_count(self.config.whole("num_experts_per_tok"))

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
    experts, inputs, outputs = tensor.shape
    return tensor.map(lambda data: data.swapaxes(1, 2), (experts, outputs, inputs))


def _every_second(tensor: Tensor, offset: int, is_bias: bool) -> Tensor:
    half = tensor.map(lambda data: data[..., offset::2], (*tensor.shape[:-1], tensor.shape[-1] // 2))
    return half if is_bias else _transposed(half)
