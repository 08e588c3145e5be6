"""LoRA adapters that are refused, each with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hf_checkpoints import convert_weights
from lora_adapters import NORM, save_adapter, save_base
from safetensors.torch import load_file, save_file

from yarn_gguf.convert import convert
from yarn_gguf.errors import ConversionError


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, 'peft_type is "LOHA": only LORA can be converted'),
        (
            {"init_lora_weights": "pissa"},
            'init_lora_weights is "pissa": the adapter belongs to a base model with',
        ),
        ({"init_lora_weights": "olora"}, "a base model with changed weights"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is true: its weights are transposed"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is"),
        ({"lora_bias": True}, "lora_bias is true"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters is"),
        ({"trainable_token_indices": [5]}, r"trainable_token_indices is \[5\]"),
        ({"use_qalora": True}, "use_qalora is true"),
        ({"alora_invocation_tokens": [1, 2]}, "takes effect from a certain token on"),
        ({"r": 5}, r"gives it the rank 5"),
        ({"r": "a"}, "r must be a number, got 'a'"),
        ({"rank_pattern": {"(": 2}}, r"rank_pattern: '\(' is no pattern"),
        ({"alpha_pattern": {".*": None}}, "alpha_pattern.*must be a number"),
    ],
)
def test_an_adapter_that_says_more_than_its_pairs_is_refused(
    base: Path, tmp_path: Path, config: dict, message: str
) -> None:
    save_adapter(tmp_path / "adapter", base, r".*v_proj", **config)
    with pytest.raises(ValueError, match=message) as caught:
        convert(tmp_path / "adapter", tmp_path / "out.gguf", type="f32")
    assert str(tmp_path / "adapter") in str(caught.value)
    with pytest.raises(ValueError, match=message):
        convert_weights(base, tmp_path / "out.gguf", type="f32", lora=tmp_path / "adapter")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {NORM: torch.ones(128)},
            r"it replaces whole weights \(model.norm.weight\), which a GGUF adapter cannot",
        ),
        (
            {"lm_head.base_layer.weight": torch.ones(260, 128)},
            "has 260 rows, and the base model's vocab_size is 256",
        ),
        ({"lm_head.base_layer.weight": torch.ones(256, 128)}, "was trained on another lm_head.weight"),
    ],
)
def test_what_a_gguf_adapter_cannot_have_is_refused_with_the_remedy(
    base: Path, tmp_path: Path, more: dict, message: str
) -> None:
    save_adapter(tmp_path / "adapter", base, r".*v_proj", more=more)
    with pytest.raises(ConversionError, match=message) as caught:
        convert(tmp_path / "adapter", tmp_path / "out.gguf", type="f32")
    assert f"(yarn-gguf convert BASE --lora {tmp_path / 'adapter'})" in str(caught.value)


def test_a_dora_is_refused_as_an_adapter_and_without_its_norms(base: Path, tmp_path: Path) -> None:
    norms = {f"model.layers.{i}.self_attn.v_proj.lora_magnitude_vector": torch.ones(64) for i in range(2)}
    save_adapter(tmp_path / "adapter", base, r".*v_proj", more=norms, use_dora=True)
    with pytest.raises(
        ConversionError, match=r"v_proj.weight is a DoRA, which a GGUF adapter cannot be: merge"
    ):
        convert(tmp_path / "adapter", tmp_path / "out.gguf", type="f32")
    save_adapter(tmp_path / "without", base, r".*v_proj", use_dora=True)
    save_adapter(tmp_path / "unknown", base, r".*v_proj", more=norms)
    for name in ("without", "unknown"):
        with pytest.raises(ConversionError, match=r"magnitude, and use_dora in adapter_config.json is"):
            convert_weights(base, tmp_path / "out.gguf", type="f32", lora=tmp_path / name)


def test_an_alpha_of_0_is_refused(base: Path, tmp_path: Path) -> None:
    """llama.cpp takes it for no scale at all, and PEFT for no change."""
    save_adapter(tmp_path / "adapter", base, r".*v_proj", lora_alpha=0)
    with pytest.raises(ConversionError, match="lora_alpha is 0, so the adapter changes nothing"):
        convert(tmp_path / "adapter", tmp_path / "out.gguf", type="f32")


@pytest.mark.parametrize("modules", ["lm_head", ".*embed_tokens"])
@pytest.mark.parametrize("says_so", [True, False])
def test_an_adapter_of_one_of_two_tied_weights_is_refused(
    tmp_path: Path, modules: str, says_so: bool
) -> None:
    """llama.cpp would take the pair for the output too, where its matrices do not fit."""
    save_base(tmp_path / "untied")
    save_base(tmp_path / "base", tie_word_embeddings=True)
    save_adapter(tmp_path / "adapter", tmp_path / "untied", modules)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": says_so}))
    with pytest.raises(ConversionError, match=r"which the base model ties: merge|and the base model's none"):
        convert(tmp_path / "adapter", tmp_path / "out.gguf", type="f32", base=tmp_path / "base")


def test_an_adapter_of_some_experts_is_refused(tmp_path: Path) -> None:
    """llama.cpp compares the sizes of a pair's matrices, and not their number."""
    save_base(tmp_path / "base", "qwen3-moe")
    save_adapter(tmp_path / "adapter", tmp_path / "base", r".*experts\.[02]\..*")
    with pytest.raises(
        ConversionError, match=r"it changes 2 experts of blk.0.ffn_down_exps.weight, and not all"
    ):
        convert(tmp_path / "adapter", tmp_path / "out.gguf", type="f32")


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda name: name.replace("lora_A", "lora_C"), "lora_C.weight is no part of a plain LoRA"),
        (lambda name: name.replace("layers.0", "layers.7"), "layers.7.self_attn.v_proj.weight"),
        (
            lambda name: name.replace("layers.0.self_attn.v_proj.lora_A", "x.lora_A"),
            "not lora_A.weight and lora_B",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    base: Path, tmp_path: Path, rename: Callable[[str], str], message: str
) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*v_proj")
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({rename(name): each for name, each in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(ConversionError, match=message):
        convert(adapter, tmp_path / "out.gguf", type="f32")
    with pytest.raises(ConversionError, match=message):
        convert_weights(base, tmp_path / "out.gguf", type="f32", lora=adapter)


def test_an_adapter_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    adapter, other = tmp_path / "adapter", tmp_path / "other-base"
    save_base(other, hidden_size=64)
    save_adapter(adapter, other, r".*v_proj")
    with pytest.raises(
        ConversionError, match=r"v_proj.weight is \(64, 64\), and the base model's \(64, 128\)"
    ):
        convert(adapter, tmp_path / "out.gguf", type="f32", base=base)
    with pytest.raises(
        ConversionError, match=r"v_proj.weight is \(64, 64\), and the base model's \(64, 128\)"
    ):
        convert_weights(base, tmp_path / "out.gguf", type="f32", lora=adapter)
