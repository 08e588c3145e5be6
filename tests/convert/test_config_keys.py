"""Every value of config.json that transformers uses is converted, refused, or has no effect on the logits."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conformance import F32, LIMIT, NO_FLASH_ATTENTION, ROWS, Row, make_config, make_model
from hf_checkpoints import convert_weights, save_checkpoint
from huggingface_hub.errors import StrictDataclassError
from libraries import LibraryProcess, patched, relative_error
from transformers_config import model_class, used_keys

from yarn_gguf import RopeScaling
from yarn_gguf.convert import text_part
from yarn_gguf.convert.arch import ARCHITECTURES, architecture
from yarn_gguf.convert.arch.base import Architecture
from yarn_gguf.convert.gguf_header import new_writer
from yarn_gguf.convert.rope_keys import add_rope_keys
from yarn_gguf.errors import ConversionError, RopeScalingError
from yarn_gguf.rope.hf_config import config_of

ROW_OF = {row.model_type: row for row in ROWS.values()}
WINDOWS = ["sliding_attention", "full_attention"]
REFUSED = (ConversionError, RopeScalingError)


def row_of(model_type: str) -> Row:
    return ROW_OF[model_type]


def values_of(model_type: str) -> dict[str, Any]:
    """Return the config.json of a tiny model of the conformance matrix."""
    config = make_config(row_of(model_type), RopeScaling())
    return json.loads(config.to_json_string()) | {"architectures": [model_class(config.model_type)]}


def file_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Return the GGUF keys of a config.json."""
    arch = architecture(config_of(values))
    writer = new_writer(arch.name, ())
    arch.add_keys(writer)
    add_rope_keys(writer, arch, None, None)
    keys = {key.removeprefix(f"{arch.name}."): entry.value for key, entry in writer.kv_data[0].items()}
    return {"rope.freq_base_swa": keys["rope.freq_base"]} | keys  # the library's default


def known_keys(arch: Architecture) -> set[str]:
    return {*arch.converted, *arch.assumed, *arch.without_effect}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_key_that_transformers_uses_is_known(model_type: str) -> None:
    """A new one belongs to `converted`, `assumed` or `without_effect` of the class in convert/arch/."""
    arch = architecture(config_of(values_of(model_type)))
    around = text_part.WITHOUT_EFFECT if model_type == "gemma3_text" else set()  # its sources have vision too
    assert used_keys(model_type) - known_keys(arch) - around == set()


def test_the_sources_show_the_keys_that_change_the_logits() -> None:
    """The reading of transformers' sources would show nothing if their style changed."""
    assert {"hidden_act", "mlp_bias", "is_causal", "rms_norm_eps", "head_dim"} <= used_keys("llama")
    assert {"query_pre_attn_scalar", "use_bidirectional_attention"} <= used_keys("gemma2")
    assert "sliding_window_pattern" in used_keys("gemma3_text")
    assert {"topk_method", "n_group", "routed_scaling_factor"} <= used_keys("deepseek_v2")
    assert {"swiglu_limit", "swiglu_alpha"} <= used_keys("gpt_oss")


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_classes_are_transformers_own(model_type: str) -> None:
    assert model_class(model_type) in ARCHITECTURES[model_type].model_classes


@pytest.mark.parametrize("change", ["left out", "null"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_value_that_is_missing_is_refused_or_transformers_default(model_type: str, change: str) -> None:
    """The witness is the value that transformers fills in."""
    values = values_of(model_type)
    without_effect = architecture(config_of(values)).without_effect
    compared = set()
    for name in values.keys() - without_effect - {"model_type", "architectures"}:
        rest = {key: value for key, value in values.items() if key != name or change == "null"}
        rest |= {name: None} if change == "null" else {}
        with contextlib.suppress(*REFUSED):
            ours = file_keys(rest)
            if (theirs := transformers_value(rest, name)) is not None:
                assert ours == file_keys(values | {name: theirs}), name
                compared.add(name)
    assert compared  # not everything is refused


def transformers_value(values: dict[str, Any], name: str) -> Any:
    """Return the value that transformers has for a config.json; None if it refuses the config."""
    try:
        return transformers.AutoConfig.for_model(**values).to_dict().get(name)
    except (StrictDataclassError, ValueError, TypeError, KeyError):
        return None


# ---- values that llama.cpp does not compute with ----------------------------------------------

EXPERTS_IN_GROUPS = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2}
LIMITED = {"topk_method": "group_limited_greedy"}


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        *((each, {"is_causal": False}, "is_causal is False") for each in ARCHITECTURES),
        *((each, {"use_bidirectional_attention": True}, "use_bidirectional") for each in ("qwen3", "gemma2")),
        ("gemma3_text", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'"),
        *((each, {"hidden_act": "relu"}, "hidden_act is 'relu'") for each in ROW_OF if "gemma" not in each),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu', but llama.cpp computes llama models"),
        ("starcoder2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("gemma2", {"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ("gemma3_text", {"hidden_activation": None}, "hidden_activation is None"),
        ("llama", {"per_layer_config": {"0": {"num_key_value_heads": 1}}}, "per_layer_config is {'0'"),
        ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder is True"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 2}, "layer_types must be 2 times full_att"),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types must be 2 times full_att"),
        *((each, {"attention_bias": True}, "attention_bias is True") for each in ("qwen3", "gemma3_text")),
        *((each, {"attention_bias": True}, "attention_bias is True") for each in ("smollm3", "olmo2")),
        *((each, {"attention_bias": True}, "attention_bias is True") for each in ("gemma2", "deepseek_v3")),
        *((each, {"mlp_bias": True}, "mlp_bias is True") for each in ("smollm3", "deepseek_v2")),
        *((each, {"attention_bias": False}, "attention_bias is False") for each in ("gpt_oss", "gpt_neox")),
        ("starcoder2", {"use_bias": False}, "use_bias is False"),
        ("gemma2", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar is 144"),
        ("gemma3_text", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar is 144"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping must be a number > 0"),
        ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping must be a number > 0"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ("granite", {"attention_multiplier": 0}, "attention_multiplier must be a number other than 0"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, "no_rope_layers is [1, 1, 1, 1]"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 3}, "no_rope_layer_interval is 3"),
        ("smollm3", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob is False"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers is [0]"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ("qwen3_moe", {"num_experts_per_tok": 5}, "num_experts_per_tok must be at most num_"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
        ("deepseek_v2", EXPERTS_IN_GROUPS | LIMITED, "topk_group must be n_group"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob is True"),
        ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
        ("deepseek_v2", {"routed_scaling_factor": 0.0}, "routed_scaling_factor must be a number"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method is 'greedy'"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave is False"),
        ("deepseek_v3", EXPERTS_IN_GROUPS | {"n_group": 3}, "n_group must be a divisor of n_routed"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
        ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads is 2"),
        ("gpt_oss", {"swiglu_limit": 20.0}, "swiglu_limit is 20.0"),
        ("gpt_oss", {"swiglu_alpha": 1.0}, "swiglu_alpha is 1.0"),
    ],
)  # fmt: skip
def test_a_value_that_llama_cpp_does_not_compute_is_refused(
    model_type: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(REFUSED) as caught:
        file_keys(values_of(model_type) | changes)
    assert message in str(caught.value)
    assert str(caught.value).startswith("config.json: ")


@pytest.mark.parametrize(
    ("model_type", "layers", "scalar"), [("gemma2", 46, 16), ("gemma3_text", 62, 16), ("gemma2", 45, 32)]
)
def test_queries_are_scaled_by_the_width_in_the_largest_gemmas_alone(
    model_type: str, layers: int, scalar: int
) -> None:
    """llama.cpp has no key for it: the rule is in its src/models/gemma2.cpp and gemma3.cpp."""
    values = values_of(model_type) | {"num_hidden_layers": layers, "layer_types": None, "hidden_size": 64}
    file_keys(values | {"query_pre_attn_scalar": scalar})
    with pytest.raises(ConversionError, match=f"only with {scalar}"):
        file_keys(values | {"query_pre_attn_scalar": 48 - scalar})


# ---- classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", "LlamaBidirectionalModel"),
        ("llama", "LlamaForSequenceClassification"),
        ("llama", "LlamaModel"),
        ("mistral", "MistralModel"),
        ("qwen3", "Qwen3ForTokenClassification"),
        ("gemma3_text", "Gemma3TextModel"),
        ("qwen2", "Qwen2ForRewardModel"),
    ],
)
def test_a_class_with_another_head_or_attention_is_refused(model_type: str, name: str) -> None:
    wanted = model_class(model_type)
    with pytest.raises(ConversionError, match=f"class '{name}'.* write '{wanted}' there"):
        file_keys(values_of(model_type) | {"architectures": [name]})
    with pytest.raises(ConversionError, match=f"auto_map names the class '{name}'"):
        file_keys(
            values_of(model_type) | {"auto_map": {"AutoModelForCausalLM": f"own/repo--modeling.{name}"}}
        )


def test_code_of_the_checkpoints_own_gives_a_warning() -> None:
    """Published Phi-3 and DeepSeek checkpoints bring code with the names of transformers' classes."""
    auto_map = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "m.Phi3ForCausalLM"}
    notes = architecture(config_of(values_of("phi3") | {"auto_map": auto_map})).notes
    assert len(notes) == 1
    assert "auto_map names code of the checkpoint's own, which is not read" in notes[0]
    assert architecture(config_of(values_of("phi3") | {"auto_map": None})).notes == []


def test_architectures_that_is_no_list_is_refused() -> None:
    with pytest.raises(RopeScalingError, match="architectures must be a list of class names"):
        file_keys(values_of("llama") | {"architectures": "LlamaForCausalLM"})


def test_weights_without_an_output_matrix_are_refused(tmp_path: Path) -> None:
    """llama.cpp would take the embeddings for one."""
    save_checkpoint(tmp_path / "hf", tie_word_embeddings=True)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(ConversionError, match=r"no lm_head\.weight, and tie_word_embeddings in"):
        convert_weights(tmp_path / "hf", tmp_path / "out.gguf", type="f32")


# ---- values that are converted: the logits are transformers' -----------------------------------


@pytest.fixture(scope="module")
def ours() -> Iterator[LibraryProcess]:
    with LibraryProcess(patched()) as process:
        yield process


@pytest.mark.parametrize(
    ("model_type", "config", "published"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}, {}),
        ("llama", {"hidden_act": "swish", "tie_word_embeddings": True}, {}),
        ("llama", {"head_dim": 64, "rms_norm_eps": 0.5}, {}),
        ("granite", {"attention_bias": True, "mlp_bias": True}, {}),
        ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0}, {}),
        ("gemma2", {"attn_logit_softcapping": 50.0, "layer_types": None}, {"attn_logit_softcapping": ...}),
        ("gemma3_text", {"final_logit_softcapping": 1.0}, {}),
        (
            "gemma3_text",
            {"num_hidden_layers": 3, "layer_types": [*WINDOWS, "sliding_attention"]},
            {"layer_types": ..., "sliding_window_pattern": 2, "_sliding_window_pattern": ...},
        ),
        ("olmo3", {"layer_types": WINDOWS[::-1]}, {}),
        ("gpt_oss", {"layer_types": WINDOWS[::-1]}, {}),
        ("gpt_neox", {"use_parallel_residual": False, "layer_norm_eps": 0.5}, {}),
        ("starcoder2", {"norm_epsilon": 0.5}, {}),
        ("deepseek_v2", EXPERTS_IN_GROUPS | {"routed_scaling_factor": 2.5}, {}),  # greedy: no groups
        ("deepseek_v2", LIMITED | {"q_lora_rank": None, "num_hidden_layers": 27}, {}),
        ("deepseek_v3", EXPERTS_IN_GROUPS | {"routed_scaling_factor": 0.5}, {}),
        ("deepseek_v3", {"norm_topk_prob": False, "first_k_dense_replace": 0}, {}),
        ("deepseek_v3", {"first_k_dense_replace": 1}, {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}),
    ],
)  # fmt: skip
def test_a_value_that_is_converted_gives_transformers_logits(
    tmp_path: Path, ours: LibraryProcess, model_type: str, config: dict, published: dict
) -> None:
    """published: values of config.json that transformers 5 does not save; `...` stands for one left out."""
    row = row_of(model_type)
    model = make_model(replace(row, config=row.config | config), RopeScaling())
    error = logit_error(model, published, tmp_path, ours)
    assert error <= LIMIT


def logit_error(
    model: transformers.PreTrainedModel, published: dict[str, Any], folder: Path, ours: LibraryProcess
) -> float:
    """Return the relative L2 error of the converted model's logits."""
    vary_vectors(model)
    model.save_pretrained(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text()) | published
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))
    convert_weights(folder, folder / "model.gguf", type="f32")
    tokens = np.random.default_rng(1).integers(3, 256, 200).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
    settings = {"n_ctx": 256, "type_k": F32, "type_v": F32, "flash_attn_type": NO_FLASH_ATTENTION}
    return relative_error(ours.logits(folder / "model.gguf", tokens, **settings), expected)


def vary_vectors(model: torch.nn.Module) -> None:
    """Randomize norms, biases and the biases of routers. Their ones and zeros would hide a mistake."""
    generator = torch.Generator().manual_seed(1)
    for name, each in [*model.named_parameters(), *model.named_buffers()]:
        if each.dim() == 1 and "inv_freq" not in name:
            each.data += 0.1 * torch.randn(each.shape, generator=generator)


def test_an_exact_gelu_is_near_the_one_that_llama_cpp_computes(tmp_path: Path, ours: LibraryProcess) -> None:
    """Pythia has the exact GELU. llama.cpp computes GPT-NeoX with the approximation by tanh."""
    row = row_of("gpt_neox")
    model = make_model(replace(row, config=row.config | {"hidden_act": "gelu"}), RopeScaling())
    assert 0 < logit_error(model, {}, tmp_path, ours) <= 2e-3
