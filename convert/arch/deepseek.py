"""DeepSeek-V2 and V3: compressed attention (MLA) and many experts."""

from __future__ import annotations

import gguf
import numpy as np

from yarn_gguf.convert.arch.base import Architecture, stack_experts
from yarn_gguf.convert.tensor import Tensor

_LOG_MULTIPLIER = 0.1  # the key yarn_log_multiplier holds 0.1 mscale_all_dim, as from upstream's converter


class DeepSeek(Architecture):
    model_arch = gguf.MODEL_ARCH.DEEPSEEK2
    without_lora = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")

    def add_attention_keys(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        rank, rotary = config.whole("kv_lora_rank"), config.whole("qk_rope_head_dim")
        writer.add_layer_norm_rms_eps(config.number("rms_norm_eps"))
        writer.add_head_count_kv(1)  # one compressed head for all
        writer.add_kv_lora_rank(rank)
        if config.values.get("q_lora_rank"):
            writer.add_q_lora_rank(config.whole("q_lora_rank"))
        writer.add_key_length(rank + rotary)
        writer.add_value_length(rank)
        writer.add_key_length_mla(config.whole("qk_nope_head_dim") + rotary)
        writer.add_value_length_mla(config.whole("v_head_dim"))
        if self.rope.scaling.mscale_all_dim:
            writer.add_rope_scaling_yarn_log_mul(_LOG_MULTIPLIER * self.rope.scaling.mscale_all_dim)
        self._add_expert_keys(writer)

    def _add_expert_keys(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        is_v3 = config.values["model_type"] == "deepseek_v3"
        gating = gguf.ExpertGatingFuncType.SIGMOID if is_v3 else gguf.ExpertGatingFuncType.SOFTMAX
        writer.add_leading_dense_block_count(int(config.number("first_k_dense_replace", 0)))
        writer.add_expert_feed_forward_length(config.whole("moe_intermediate_size"))
        writer.add_expert_count(config.whole("n_routed_experts"))
        writer.add_expert_used_count(config.whole("num_experts_per_tok"))
        writer.add_expert_shared_count(config.whole("n_shared_experts"))
        writer.add_expert_group_count(config.whole("n_group", 1))
        writer.add_expert_group_used_count(config.whole("topk_group", 1))
        writer.add_expert_weights_scale(config.number("routed_scaling_factor", 1.0))
        writer.add_expert_weights_norm(is_v3 and bool(config.values.get("norm_topk_prob", True)))
        writer.add_expert_gating_func(gating)

    def arrange(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        arranged = stack_experts(
            {
                name.replace("e_score_correction_bias", "e_score_correction.bias"): tensor
                for name, tensor in tensors.items()
                if not name.startswith(self._draft_layers())
            }
        )
        for name in [name for name in arranged if name.endswith("kv_b_proj.weight")]:
            arranged |= self._split_up_projection(name, arranged.pop(name))
        return arranged

    def _draft_layers(self) -> tuple[str, ...]:
        """Return the name prefixes of DeepSeek-V3's layers after the last one, which predict draft tokens.

        llama.cpp has no such layers.
        """
        count = int(self.config.number("num_nextn_predict_layers", 0))
        return tuple(f"model.layers.{self.layers + i}." for i in range(count))

    def _split_up_projection(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Split the up-projection into K's and V's part. K's is transposed, to be absorbed into the query."""
        nope, value = self.config.whole("qk_nope_head_dim"), self.config.whole("v_head_dim")
        rank = tensor.shape[1]

        def key_part(data: np.ndarray) -> np.ndarray:
            return data.reshape(self.heads, nope + value, rank)[:, :nope].swapaxes(1, 2)

        def value_part(data: np.ndarray) -> np.ndarray:
            return data.reshape(self.heads, nope + value, rank)[:, nope:]

        return {
            name.replace("kv_b_proj", "k_b_proj"): tensor.map(key_part, (self.heads, rank, nope)),
            name.replace("kv_b_proj", "v_b_proj"): tensor.map(value_part, (self.heads, value, rank)),
        }
