"""GPT-NeoX and Pythia: biases everywhere, and one fused projection of Q, K and V with the heads outermost."""

from __future__ import annotations

import gguf
import numpy as np

from yarn_gguf.convert.arch.base import Architecture, suffix_map
from yarn_gguf.convert.arch.config_keys import CONVERTED, GELU_TANH, WITHOUT_EFFECT, Assumptions
from yarn_gguf.convert.tensor import Tensor


class GPTNeoX(Architecture):
    model_arch = gguf.MODEL_ARCH.GPTNEOX
    needs_output = True
    model_classes = ("GPTNeoXForCausalLM",)
    converted = CONVERTED | {"layer_norm_eps", "use_parallel_residual", "rotary_pct", "rotary_emb_base"}
    without_effect = WITHOUT_EFFECT | {"rms_norm_eps"}

    @property
    def assumed(self) -> Assumptions:
        return super().assumed | {"hidden_act": (*GELU_TANH, "gelu"), "attention_bias": (True,)}

    def add_attention_keys(self, writer: gguf.GGUFWriter) -> None:
        writer.add_layer_norm_eps(self.config.number("layer_norm_eps"))
        writer.add_parallel_residual(bool(self.config.values.get("use_parallel_residual", True)))

    def arrange(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        ends = ("query_key_value.weight", "query_key_value.bias")
        return suffix_map(tensors, dict.fromkeys(ends, lambda tensor: tensor.map(self._projection_outermost)))

    def _projection_outermost(self, data: np.ndarray) -> np.ndarray:
        """Reorder rows from (heads, 3, head_dim) to (3, heads, head_dim): Q, then K, then V."""
        return data.reshape(self.heads, 3, -1, *data.shape[1:]).swapaxes(0, 1).reshape(data.shape)
