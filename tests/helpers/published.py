"""config.json of published checkpoints, with tiny dimensions.

Rope scaling, contexts, bases and flags are as published, with the names of their time (`rope_scaling` with
`type`, values at odd places). Widths, depths and vocabularies are small. Other values are left out if no
converter reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.15,
}
_LLAMA_2 = _TINY | {
    "model_type": "llama",
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_MISTRAL = _TINY | {"model_type": "mistral", "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
_QWEN_2_5 = _TINY | {
    "model_type": "qwen2",
    "max_position_embeddings": 32768,
    "max_window_layers": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}
_QWEN_3 = _TINY | {
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 32,
    "max_position_embeddings": 40960,
    "max_window_layers": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "sliding_window": None,
    "use_sliding_window": False,
}


def _yarn(factor: float, original: int, **more: Any) -> dict[str, Any]:
    return {"factor": factor, "original_max_position_embeddings": original, "type": "yarn", **more}


@dataclass(frozen=True)
class Published:
    """A checkpoint.

    config: its config.json. keys: expected keys of the GGUF file, without "{arch}.". surplus: tensors of the
    checkpoint that the GGUF file must not have.
    """

    config: dict[str, Any]
    keys: dict[str, Any]
    surplus: tuple[str, ...] = ()


def _scaled(kind: str, context: int, original: int, factor: float, base: float) -> dict[str, Any]:
    return {
        "context_length": context,
        "rope.freq_base": base,
        "rope.scaling.type": kind,
        "rope.scaling.original_context_length": original,
        "rope.scaling.factor": factor,
    }


PUBLISHED = {
    "Yarn-Llama-2-7b-64k": Published(
        _LLAMA_2
        | {"max_position_embeddings": 65536, "rope_scaling": _yarn(16.0, 4096, finetuned=True)}
        | {"rope_theta": 10000.0},
        _scaled("yarn", 65536, 4096, 16.0, 10000.0) | {"rope.scaling.finetuned": True},
        ("model.layers.0.self_attn.rotary_emb.inv_freq",),
    ),
    "Yarn-Llama-2-7b-128k": Published(
        _LLAMA_2 | {"max_position_embeddings": 131072, "rope_scaling": _yarn(32.0, 4096, finetuned=True)},
        _scaled("yarn", 131072, 4096, 32.0, 10000.0) | {"rope.scaling.finetuned": True},
    ),
    "Yarn-Mistral-7b-128k": Published(
        _MISTRAL
        | {"max_position_embeddings": 32768, "max_sequence_length": 131072, "sliding_window": 131072}
        | {"rope_scaling": _yarn(16.0, 8192, finetuned=True), "rope_theta": 10000.0},
        _scaled("yarn", 131072, 8192, 16.0, 10000.0) | {"rope.scaling.finetuned": True},
    ),
    "Together LLaMA-2-7B-32K": Published(
        _LLAMA_2 | {"max_position_embeddings": 32768, "rope_scaling": {"factor": 8.0, "type": "linear"}},
        _scaled("linear", 32768, 4096, 8.0, 10000.0),
    ),
    "vicuna-7b-v1.5-16k": Published(
        _LLAMA_2
        | {"max_position_embeddings": 4096, "max_sequence_length": 16384}
        | {"rope_scaling": {"factor": 4.0, "type": "linear"}},
        _scaled("linear", 16384, 4096, 4.0, 10000.0),
    ),
    "CodeLlama-7b": Published(
        _LLAMA_2 | {"max_position_embeddings": 16384, "rope_theta": 1000000, "rope_scaling": None},
        {"context_length": 16384, "rope.freq_base": 1000000.0, "rope.scaling.type": None},
    ),
    "MistralLite": Published(
        _MISTRAL | {"max_position_embeddings": 32768, "rope_theta": 1000000.0, "sliding_window": 16384},
        {"context_length": 32768, "rope.freq_base": 1000000.0, "rope.scaling.type": None},
    ),
    "Qwen2.5-7B-Instruct with YaRN": Published(
        _QWEN_2_5 | {"rope_scaling": _yarn(4.0, 32768)},
        _scaled("yarn", 131072, 32768, 4.0, 1000000.0),
    ),
    "Qwen3-8B with YaRN": Published(
        _QWEN_3
        | {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
            }
        },
        _scaled("yarn", 131072, 32768, 4.0, 1000000.0),
    ),
    "Llama-3.1-8B": Published(
        _LLAMA_2
        | {"num_key_value_heads": 2, "max_position_embeddings": 131072, "rope_theta": 500000.0}
        | {
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            }
        },
        # not 8 x 8192: this factor is no ratio of contexts; the scaling is in the tensor rope_freqs.weight
        {
            "context_length": 131072,
            "rope.freq_base": 500000.0,
            "rope.scaling.type": None,
            "rope.scaling.factor": None,
            "rope.scaling.original_context_length": 8192,
            "rope.scaling.llama3_factor": 8.0,
        },
    ),
    "pythia-70m": Published(
        _TINY
        | {
            "model_type": "gpt_neox",
            "hidden_act": "gelu_new",  # published: gelu, which ggml approximates by gelu_new
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "rotary_emb_base": 10000,
            "rotary_pct": 0.25,
            "tie_word_embeddings": False,
            "use_parallel_residual": True,
        },
        {"context_length": 2048, "rope.dimension_count": 4, "rope.freq_base": 10000.0},
        (
            "gpt_neox.layers.0.attention.bias",
            "gpt_neox.layers.0.attention.masked_bias",
            "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
        ),
    ),
    "DeepSeek-V3": Published(
        _TINY
        | {
            "model_type": "deepseek_v3",
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 32,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 32,
            "moe_layer_freq": 1,
            "norm_topk_prob": True,
            "num_nextn_predict_layers": 1,
            "routed_scaling_factor": 2.5,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "max_position_embeddings": 163840,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000,
            "tie_word_embeddings": False,
            "rope_scaling": _yarn(40, 4096, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0),
        },
        _scaled("yarn", 163840, 4096, 40.0, 10000.0),
        ("model.layers.2.eh_proj.weight", "model.layers.2.mlp.experts.0.up_proj.weight"),
    ),
    "gemma-3-4b-it": Published(
        {
            "model_type": "gemma3",
            "mm_tokens_per_image": 4,
            "text_config": {
                "model_type": "gemma3_text",
                "vocab_size": 128,
                "hidden_size": 64,
                "intermediate_size": 48,
                "num_hidden_layers": 6,
                "initializer_range": 0.15,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
        },
        _scaled("linear", 131072, 16384, 8.0, 1000000.0) | {"attention.head_count": 8},
    ),
    "gpt-oss-20b": Published(
        _TINY
        | {
            "model_type": "gpt_oss",
            "head_dim": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "experts_per_token": 2,
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"],
            "initial_context_length": 4096,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "attention_bias": True,
            "rope_theta": 150000,
            "tie_word_embeddings": False,
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "rope_type": "yarn",
                "truncate": False,
            },
        },
        _scaled("yarn", 131072, 4096, 32.0, 150000.0),
    ),
}
