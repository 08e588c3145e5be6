"""The values of a config.json that an architecture's model has, and what becomes of each.

A value is converted, must be the one that llama.cpp computes with, or does not change the logits. Each class
in convert/arch/ says which. tests/convert/test_config_keys.py reads transformers' sources, and fails for a
value that they use and no class knows.
"""

from __future__ import annotations

from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config

# the values that llama.cpp computes with, by name; a value that is left out is transformers' default
Assumptions = dict[str, tuple[object, ...]]

SILU = ("silu", "swish")
GELU_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")  # three names of one function

# read by yarn_gguf/rope/hf_config.py and hf_rope.py, which check them
ROPE = frozenset(
    ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "max_position_embeddings")
)

# keys of the file, or the shapes and names of its tensors
CONVERTED = ROPE | {
    "model_type",
    "architectures",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "sliding_window",  # a key of the file, or a warning
    "layer_types",
    "pad_token_id",  # these three: the vocabulary
    "bos_token_id",
    "eos_token_id",
}

# transformers lets any model have these
ASSUMED: Assumptions = {
    "is_causal": (True,),
    "use_bidirectional_attention": (False, None),
    "is_encoder_decoder": (False,),
    "attention_chunk_size": (None,),
    "kv_sharing_modes": (None,),
    "per_layer_config": (None,),
    "unpadded_vocab_size": (None,),
}

_TRAINING = {
    *("attention_dropout", "hidden_dropout", "embedding_dropout", "residual_dropout", "classifier_dropout"),
    *("resid_pdrop", "embd_pdrop", "initializer_range", "initializer_factor", "init_std"),
    *("output_router_logits", "router_aux_loss_coef", "gradient_checkpointing", "pretraining_tp"),
}
_RUNNING = {
    *("use_cache", "return_dict", "dtype", "torch_dtype", "chunk_size_feed_forward", "distributed_config"),
    *("output_hidden_states", "output_attentions", "attn_implementation", "experts_implementation"),
    *("fusion_config", "tie_last_hidden_states", "transformers_version", "transformers_weights"),
    *("name_or_path", "_commit_hash", "number_of_conv_states", "sep_token_id", "is_decoder"),
}
_CLASSIFICATION = {"id2label", "label2id", "num_labels", "problem_type", "token_classification_bias"}
_DRAFT_LAYERS = {  # layers after the last one, which predict draft tokens; llama.cpp has none of them here
    *("num_mtp_layers", "num_nextn_predict_layers", "mtp_layer_types", "mtp_mlp_layer_types"),
    *("mtp_per_layer_config", "mtp_hidden_states_first", "chain_hidden_post_norm"),
    *("logits_mup_width_multiplier", "mlp_layer_types", "first_k_dense_replace"),
}
WITHOUT_EFFECT = frozenset(_TRAINING | _RUNNING | _CLASSIFICATION | _DRAFT_LAYERS)


def check_assumptions(config: Config, assumed: Assumptions, arch: str) -> None:
    """Raise ConversionError for a value of config.json that is none of those that llama.cpp computes with.

    arch: llama.cpp's name of the architecture.
    """
    for name, expected in assumed.items():
        value = config.values.get(name, expected[0])
        if value not in expected:
            allowed = " or ".join(map(repr, expected))
            raise ConversionError(
                f"{config.path}: {name} is {value!r}, but llama.cpp computes {arch} models only with "
                f"{allowed}: run this checkpoint with transformers"
            )


def check_model_class(config: Config, wanted: tuple[str, ...]) -> None:
    """Raise ConversionError if config.json names a model class that is none of `wanted`.

    wanted: transformers' classes that compute the next token's logits. Another class has another head, or
    another attention.
    """
    named = config.values.get("architectures") or []
    if not isinstance(named, list):
        config.refuse("architectures", "a list of class names")
    for name in [*named, *_own_code(config)]:
        if name not in wanted:
            raise ConversionError(
                f"{config.path}: architectures or auto_map names the class {name!r}, whose head, attention "
                f"or pooling would be lost: only {' or '.join(wanted)} is converted. If the weights are "
                f"such a model's, write {wanted[0]!r} there"
            )


def own_code_note(config: Config) -> list[str]:
    """Return a warning if the checkpoint brings code of its own, which a conversion does not read."""
    names = _own_code(config)
    if not names:
        return []
    return [
        f"{config.path}: auto_map names code of the checkpoint's own, which is not read: the file computes "
        f"what transformers' {names[0]} does"
    ]


def _own_code(config: Config) -> list[str]:
    """Return the class in the checkpoint's own code that generates text; empty if there is none.

    An entry is REPOSITORY--MODULE.CLASS or MODULE.CLASS.
    """
    entry = config.section("auto_map").values.get("AutoModelForCausalLM")
    return [str(entry).rpartition(".")[2]] if entry else []
