"""DeepSeek-V2 and V3: compressed attention (MLA) and many experts."""

from __future__ import annotations

from types import MappingProxyType

import gguf
import numpy as np

from yarn_gguf.convert.arch.base import Architecture, stack_experts
from yarn_gguf.convert.arch.config_keys import SILU, Assumptions
from yarn_gguf.convert.tensor import Tensor

_LOG_MULTIPLIER = 0.1  # the key yarn_log_multiplier holds 0.1 mscale_all_dim, as from upstream's converter


class DeepSeek(Architecture):
    """The common part of both versions. gating: how a router's logits become weights of experts."""

    model_arch = gguf.MODEL_ARCH.DEEPSEEK2
    without_lora = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
    gating: gguf.ExpertGatingFuncType
    converted = Architecture.converted | {
        *("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
        *("first_k_dense_replace", "moe_intermediate_size", "n_routed_experts", "n_shared_experts"),
        *("num_experts", "num_local_experts"),  # transformers' names in common for n_routed_experts
        *("num_experts_per_tok", "n_group", "topk_group", "routed_scaling_factor"),
    }

    @property
    def assumed(self) -> Assumptions:
        return super().assumed | {
            "hidden_act": SILU,
            "attention_bias": (False,),
            "num_key_value_heads": (self.heads, None),
            "moe_layer_freq": (1,),  # of the checkpoints' own code
        }

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
        groups, used = self.groups()
        writer.add_leading_dense_block_count(int(config.number("first_k_dense_replace")))
        writer.add_expert_feed_forward_length(config.whole("moe_intermediate_size"))
        self.add_experts(writer, "n_routed_experts", "num_experts", "num_local_experts")
        writer.add_expert_shared_count(config.whole("n_shared_experts"))
        writer.add_expert_group_count(groups)
        writer.add_expert_group_used_count(used)
        writer.add_expert_weights_scale(self._weights_scale())
        writer.add_expert_weights_norm(self.norms_weights())
        writer.add_expert_gating_func(self.gating)

    def _weights_scale(self) -> float:
        """Return the factor of the experts' weights. Raises RopeScalingError for 0."""
        value = self.config.number("routed_scaling_factor")
        if not value:
            self.config.refuse("routed_scaling_factor", "a number other than 0, which llama.cpp takes for 1")
        return value

    def norms_weights(self) -> bool:
        """Return whether the weights of the chosen experts are divided by their sum."""
        raise NotImplementedError

    def groups(self) -> tuple[int, int]:
        """Return how many groups of experts there are, and how many a token may use; (1, 1): all."""
        groups, used = self.config.whole("n_group", 1), self.config.whole("topk_group", 1)
        return (groups, used) if used < groups else (1, 1)

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


class DeepSeekV2(DeepSeek):
    model_classes = ("DeepseekV2ForCausalLM",)
    gating = gguf.ExpertGatingFuncType.SOFTMAX
    converted = DeepSeek.converted | {"topk_method"}
    defaults = MappingProxyType(
        {"first_k_dense_replace": 0, "n_shared_experts": 2, "routed_scaling_factor": 1.0, "q_lora_rank": 1536}
    )

    @property
    def assumed(self) -> Assumptions:
        return super().assumed | {
            "mlp_bias": (False,),
            "topk_method": ("greedy", "group_limited_greedy"),
            "norm_topk_prob": (False, None),  # this and the next: of the checkpoints' own code
            "scoring_func": ("softmax",),
        }

    def norms_weights(self) -> bool:
        return False

    def groups(self) -> tuple[int, int]:
        """Return (1, 1). Raises RopeScalingError for a limit.

        llama.cpp ranks a group by the sum of its two best experts, as V3 does. V2 takes the best expert.
        """
        if self.config.values.get("topk_method") == "group_limited_greedy" and super().groups() != (1, 1):
            self.config.refuse(
                "topk_group",
                "n_group or more under topk_method 'group_limited_greedy': llama.cpp chooses groups as "
                "DeepSeek-V3 does, so run this checkpoint with transformers",
            )
        return 1, 1


class DeepSeekV3(DeepSeek):
    model_classes = ("DeepseekV3ForCausalLM",)
    gating = gguf.ExpertGatingFuncType.SIGMOID
    converted = DeepSeek.converted | {"norm_topk_prob"}
    defaults = MappingProxyType(
        {
            "first_k_dense_replace": 3,
            "n_shared_experts": 1,
            "num_key_value_heads": 128,
            "num_experts_per_tok": 8,
            "n_group": 8,
            "topk_group": 4,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "q_lora_rank": 1536,
        }
    )

    @property
    def assumed(self) -> Assumptions:
        return super().assumed | {
            "rope_interleave": (True,),
            "topk_method": ("noaux_tc",),  # this and the next: of the checkpoints' own code
            "scoring_func": ("sigmoid",),
        }

    def norms_weights(self) -> bool:
        return bool(self.config.values.get("norm_topk_prob"))

    def groups(self) -> tuple[int, int]:
        """Return the groups. Raises RopeScalingError for a number that does not divide the experts."""
        groups, used = super().groups()
        experts = self.config.whole("n_routed_experts")
        if groups > 1 and (experts % groups or experts < 2 * groups):
            self.config.refuse("n_group", f"a divisor of n_routed_experts = {experts}, at most half of it")
        return groups, used
