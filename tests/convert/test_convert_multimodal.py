"""Multimodal checkpoints: the text model within them is converted, and the other parts are left out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hf_checkpoints import convert_weights
from libraries import HELPERS, LibraryProcess, patched, relative_error
from multimodal_checkpoints import save_multimodal
from quantized_checkpoints import fp8, save_quantized
from safetensors.torch import load_file, save_file
from tiny_gguf import contents
from transformers import PreTrainedConfig
from upstream_tree import unpack_converter

from yarn_gguf.convert import text_part
from yarn_gguf.convert.arch import architecture
from yarn_gguf.convert.arch.config_keys import CONVERTED, WITHOUT_EFFECT
from yarn_gguf.convert.plan import plan_conversion
from yarn_gguf.convert.text_part import MULTIMODAL
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import read_config

TOKENS = np.random.default_rng(1).integers(3, 250, 60).tolist()
MODELS = [
    ("Llava", "llama"),
    ("Llava", "mistral"),
    ("LlavaNext", "mistral"),
    ("LlavaNextVideo", "llama"),
    ("LlavaOnevision", "qwen2"),
    ("VipLlava", "llama"),
    ("VideoLlava", "llama"),
    ("Mistral3", "mistral"),
    ("Gemma3", "gemma3_text"),
    ("Idefics2", "mistral"),
    ("Idefics3", "llama"),
    ("SmolVLM", "llama"),
    ("InternVL", "qwen2"),
    ("GotOcr2", "qwen2"),
    ("LightOnOcr", "qwen3"),
    ("Ovis2", "qwen2"),
    ("Voxtral", "llama"),
    ("Qwen2Audio", "qwen2"),
    ("AudioFlamingo3", "qwen2"),
]


def logits(model: transformers.PreTrainedModel) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor([TOKENS])).logits[0].float().numpy()


def converted_logits(folder: Path, library: LibraryProcess) -> np.ndarray:
    convert_weights(folder, folder / "out.gguf", type="f32", force=True)
    settings = {"n_ctx": len(TOKENS), "type_k": 0, "type_v": 0, "flash_attn_type": 0}
    return library.logits(folder / "out.gguf", TOKENS, **settings)


def edit_config(folder: Path, change: Callable[[dict], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def library():
    with LibraryProcess(patched()) as process:
        yield process


@pytest.mark.parametrize(("name", "text_type"), MODELS)
def test_a_text_model_computes_what_transformers_does_without_images(
    library: LibraryProcess, tmp_path: Path, name: str, text_type: str
) -> None:
    model = save_multimodal(tmp_path, name, text_type)
    assert relative_error(converted_logits(tmp_path, library), logits(model)) < 1e-4


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"model.{name}".replace("language_model.model.", "language_model."),
        lambda name: f"model.{name}",
        lambda name: name.replace("language_model.lm_head.", "lm_head."),
    ],
)
def test_every_naming_of_the_tensors_gives_the_same_file(tmp_path: Path, rename) -> None:
    save_multimodal(tmp_path, "Llava", "llama")
    weights = tmp_path / "model.safetensors"
    convert_weights(tmp_path, tmp_path / "old.gguf", type="f16")
    tensors = {rename(name): tensor for name, tensor in load_file(weights).items()}
    tensors = {
        name.replace("model.language_model.lm_head", "lm_head"): each for name, each in tensors.items()
    }
    save_file(tensors, weights)
    convert_weights(tmp_path, tmp_path / "new.gguf", type="f16")
    assert contents(tmp_path / "new.gguf") == contents(tmp_path / "old.gguf")


def test_a_text_model_is_dequantized_and_whole_numbers_of_other_parts_are_left_out(tmp_path: Path) -> None:
    """Vision towers of older checkpoints have position_ids."""
    text, whole = tmp_path / "text", tmp_path / "whole"
    save_quantized(text, {"quant_method": "fp8"}, fp8(128, 128))
    convert_weights(text, tmp_path / "text.gguf", type="f16")
    config = json.loads((text / "config.json").read_text())
    quantization = config.pop("quantization_config")
    whole.mkdir()
    around = {"model_type": "llava", "text_config": config, "quantization_config": quantization}
    (whole / "config.json").write_text(json.dumps(around))
    tensors = {f"language_model.{name}": each for name, each in load_file(text / "model.safetensors").items()}
    save_file(tensors | {"vision_tower.position_ids": torch.arange(4)}, whole / "model.safetensors")
    convert_weights(whole, tmp_path / "whole.gguf", type="f16")
    assert contents(tmp_path / "whole.gguf")[1] == contents(tmp_path / "text.gguf")[1]


def test_the_parts_that_are_left_out_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_multimodal(tmp_path, "Llava", "llama")
    plan_conversion(tmp_path, type="f16", tokenizer=False)
    (said,) = [each.getMessage() for each in caplog.records]
    parts = "multi_modal_projector, vision_tower"
    assert said.endswith(f"only the text model of this llava checkpoint is converted (without {parts})")


@pytest.mark.parametrize(
    ("name", "text_type", "their_name"),
    [
        ("Mistral3", "mistral", "mistral3"),  # the same graph under another name
        pytest.param("Llava", "llama", "llama", marks=pytest.mark.slow),
        pytest.param("Gemma3", "gemma3_text", "gemma3", marks=pytest.mark.slow),
        pytest.param("Idefics3", "llama", "llama", marks=pytest.mark.slow),
        pytest.param("Voxtral", "llama", "llama", marks=pytest.mark.slow),
        pytest.param("Qwen2Audio", "qwen2", "qwen2", marks=pytest.mark.slow),
    ],
)
def test_a_text_models_tensors_are_those_of_upstreams_converter(
    tmp_path: Path, name: str, text_type: str, their_name: str
) -> None:
    checkpoint, theirs = tmp_path / "hf", tmp_path / "theirs.gguf"
    save_multimodal(checkpoint, name, text_type)
    if name == "Gemma3":  # upstream's converter takes the number of tokens from tokenizer.json
        tokenizer = {"added_tokens": [], "model": {"vocab": {str(i): i for i in range(256)}}}
        (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    if name == "Idefics3":  # as published checkpoints have it
        edit_config(checkpoint, lambda each: each["text_config"].update(architectures=["VLlama3ForCausalLM"]))
    tree = unpack_converter(tmp_path / "upstream")
    command = [sys.executable, HELPERS / "upstream_converter.py", tree, checkpoint, theirs, "f32"]
    done = subprocess.run([*command, "--no-tokenizer"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    convert_weights(checkpoint, tmp_path / "ours.gguf", type="f32")
    (our_keys, our_tensors), (their_keys, their_tensors) = contents(tmp_path / "ours.gguf"), contents(theirs)
    assert our_tensors == their_tensors
    assert their_keys["general.architecture"] == their_name
    for key, value in our_keys.items():
        theirs_of_key = their_keys.get(key.replace(f"{our_keys['general.architecture']}.", f"{their_name}."))
        assert key == "general.architecture" or theirs_of_key in (value, None), key


@pytest.mark.parametrize("text_type", ["llama", "mistral", "phi3", "qwen2", "qwen3", "gemma3_text"])
def test_a_text_config_leaves_out_what_transformers_knows(tmp_path: Path, text_type: str) -> None:
    outside = {"hidden_size": 7, "num_hidden_layers": 7}  # of another part
    config = {"model_type": "llava", "text_config": {"model_type": text_type}, **outside}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = architecture(read_config(tmp_path)).config.values
    theirs = transformers.AutoConfig.for_model(text_type)
    names = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
    names += ["num_key_value_heads", "max_position_embeddings", "rms_norm_eps"]
    for name in names:
        assert ours[name] == getattr(theirs, name), name
    window = ours.get("sliding_window") if ours.get("use_sliding_window", True) else None
    assert window == getattr(theirs, "sliding_window", None)


def test_a_text_config_of_gemma_3_may_leave_out_its_model_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma3", "text_config": {"vocab_size": 99}}')
    arch = architecture(read_config(tmp_path))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path).text_config
    assert arch.config.values["model_type"] == theirs.model_type
    assert (arch.layers, arch.config.values["vocab_size"]) == (theirs.num_hidden_layers, theirs.vocab_size)


@pytest.mark.parametrize("model_type", MULTIMODAL)
def test_the_keys_classes_and_ties_are_transformers_own(model_type: str) -> None:
    """A new key belongs to WITHOUT_EFFECT in convert/text_part.py, if it does not change the text model."""
    name, is_tied = MULTIMODAL[model_type]
    config_class = getattr(transformers, f"{name}ForConditionalGeneration").config_class
    assert config_class.model_type == model_type
    assert getattr(config_class(), "tie_word_embeddings", False) == is_tied
    own = {each.name for each in fields(config_class)} - {each.name for each in fields(PreTrainedConfig)}
    aliases = {*config_class.attribute_map, *config_class.attribute_map.values()}
    assert (own | aliases) - CONVERTED - WITHOUT_EFFECT - text_part.WITHOUT_EFFECT == set()


@pytest.mark.parametrize("name", ["LlavaForSequenceClassification", "LlavaModel", "Qwen2ForCausalLM"])
@pytest.mark.parametrize("key", ["architectures", "auto_map"])
def test_a_class_with_another_head_around_the_text_model_is_refused(
    tmp_path: Path, name: str, key: str
) -> None:
    save_multimodal(tmp_path, "Llava", "llama")
    value = [name] if key == "architectures" else {"AutoModelForCausalLM": f"modeling.{name}"}
    edit_config(tmp_path, lambda config: config.update({key: value}))
    with pytest.raises(
        ConversionError, match=f"class '{name}'.* write 'LlavaForConditionalGeneration' there"
    ):
        plan_conversion(tmp_path, type="f32", tokenizer=False)


@pytest.mark.parametrize("inside", ["MistralForCausalLM", "MistralModel"])
def test_the_class_that_a_text_config_names_is_not_looked_at(tmp_path: Path, inside: str) -> None:
    """transformers takes the class from its model_type."""
    save_multimodal(tmp_path, "Mistral3", "mistral")
    edit_config(tmp_path, lambda config: config["text_config"].update(architectures=[inside]))
    plan_conversion(tmp_path, type="f32", tokenizer=False)


def test_the_output_layer_is_tied_where_transformers_ties_it(library: LibraryProcess, tmp_path: Path) -> None:
    """Mistral 3's default is a tie, whatever its text_config says."""
    model = save_multimodal(tmp_path, "Mistral3", "mistral")
    edit_config(tmp_path, lambda config: config["text_config"].update(tie_word_embeddings=False))
    edit_config(tmp_path, lambda config: config.pop("tie_word_embeddings", None))
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert relative_error(converted_logits(tmp_path, library), logits(model)) < 1e-4


def test_a_multimodal_model_that_may_change_its_text_is_refused(tmp_path: Path) -> None:
    save_multimodal(tmp_path, "Llava", "llama")
    edit_config(tmp_path, lambda config: config.update(model_type="paligemma"))
    with pytest.raises(ConversionError, match="model_type 'paligemma' may compute text in another way"):
        convert_weights(tmp_path, tmp_path / "out.gguf", type="f32")


def test_an_output_projection_of_its_own_is_kept_in_a_checkpoint_that_calls_it_tied(
    library: LibraryProcess, tmp_path: Path
) -> None:
    """Compare with transformers, which does so since version 5."""
    save_multimodal(tmp_path, "Llava", "llama")
    edit_config(tmp_path, lambda config: config.update(tie_word_embeddings=True))
    edit_config(tmp_path, lambda config: config["text_config"].update(tie_word_embeddings=True))
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert relative_error(converted_logits(tmp_path, library), logits(model)) < 1e-4
