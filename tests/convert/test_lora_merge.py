"""LoRA adapters that are merged into the weights, with all that PEFT saves beside the pairs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hf_checkpoints import convert_weights, save_checkpoint
from libraries import relative_error
from lora_adapters import (
    EMBEDDINGS,
    HEAD,
    NORM,
    logits,
    merge,
    save_adapter,
    save_base,
    tensors_of,
    with_weights,
)
from quantized_checkpoints import fp8, save_quantized
from safetensors.torch import load_file, save_file
from tiny_gguf import contents

from yarn_gguf.convert import convert
from yarn_gguf.errors import ConversionError


def grown(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([tensor, torch.full((rows, tensor.shape[1]), 0.01)])


def test_weights_that_were_trained_wholly_replace_the_base_models(base: Path, tmp_path: Path) -> None:
    """LongLoRA's adapters have embeddings and norms of their own."""
    adapter, weights = tmp_path / "adapter", load_file(base / "model.safetensors")
    more = {name: weights[name] * 1.25 for name in (EMBEDDINGS, HEAD, NORM)}
    changes = save_adapter(adapter, base, r".*_proj", more=more, modules_to_save=["embed_tokens", "norm"])
    convert_weights(base, tmp_path / "merged.gguf", type="f32", lora=adapter)
    expected = with_weights(base, merge(weights | more, changes))
    assert relative_error(logits(tmp_path / "merged.gguf"), expected) < 1e-4


def test_embeddings_that_were_trained_part_from_a_tied_output(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """PEFT trains a copy of the embeddings, and the output projection stays as it was."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save_base(base, tie_word_embeddings=True)
    weights = load_file(base / "model.safetensors")
    more = {EMBEDDINGS: weights[EMBEDDINGS] * 1.25}
    changes = save_adapter(adapter, base, r".*_proj", more=more, modules_to_save=["embed_tokens"])
    convert_weights(base, tmp_path / "merged.gguf", type="f32", lora=adapter)
    parted = merge(weights | more | {HEAD: weights[EMBEDDINGS]}, changes)
    expected = with_weights(base, parted, tie_word_embeddings=False)
    assert relative_error(logits(tmp_path / "merged.gguf"), expected) < 1e-4
    assert not caplog.records  # it is as it should be


def test_embeddings_that_part_from_gemma_2s_output_are_refused(tmp_path: Path) -> None:
    """llama.cpp has one tensor for both."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save_base(base, "gemma2")
    more = {EMBEDDINGS: load_file(base / "model.safetensors")[EMBEDDINGS] * 1.25}
    save_adapter(adapter, base, r".*_proj", more=more, modules_to_save=["embed_tokens"])
    with pytest.raises(ConversionError, match="has no output layer of its own for gemma2 models"):
        convert_weights(base, tmp_path / "merged.gguf", type="f32", lora=adapter)


def test_a_vocabulary_that_has_grown_is_merged(base: Path, tmp_path: Path) -> None:
    adapter, weights = tmp_path / "adapter", load_file(base / "model.safetensors")
    more = {name: grown(weights[name], 8) for name in (EMBEDDINGS, HEAD)}
    changes = save_adapter(adapter, base, r".*_proj", more=more)
    convert_weights(base, tmp_path / "merged.gguf", type="f32", lora=adapter)
    expected = with_weights(base, merge(weights | more, changes), vocab_size=264)
    assert expected.shape[1] == 264
    assert relative_error(logits(tmp_path / "merged.gguf"), expected) < 1e-4


def test_longloras_file_of_embeddings_and_norms_is_merged(base: Path, tmp_path: Path) -> None:
    """Its embeddings have a row for a padding token that the base model's tokenizer does not have."""
    adapter, weights = tmp_path / "adapter", load_file(base / "model.safetensors")
    changes = save_adapter(adapter, base, r".*_proj")
    more = {EMBEDDINGS: weights[EMBEDDINGS] * 1.25, NORM: weights[NORM] * 1.25}
    torch.save(more | {EMBEDDINGS: grown(more[EMBEDDINGS], 1)}, adapter / "trainable_params.bin")
    convert_weights(base, tmp_path / "merged.gguf", type="f32", lora=adapter)
    expected = with_weights(base, merge(weights | more, changes))
    assert relative_error(logits(tmp_path / "merged.gguf"), expected) < 1e-4
    with pytest.raises(
        ConversionError, match=r"it replaces whole weights \(model.embed_tokens.weight, model.n"
    ):
        convert(adapter, tmp_path / "adapter.gguf", type="f32")


def test_a_dora_is_merged(base: Path, tmp_path: Path) -> None:
    """Each row of W + scale B A gets a norm of its own."""
    adapter, weights = tmp_path / "adapter", load_file(base / "model.safetensors")
    norms = {
        f"{name.removesuffix('.weight')}.lora_magnitude_vector": torch.rand(len(weight)) + 0.5
        for name, weight in weights.items()
        if name.endswith("down_proj.weight")
    }
    changes = save_adapter(adapter, base, r".*down_proj", more=norms, use_dora=True)
    expected = merge(weights, changes)
    for name, norm in norms.items():
        rows = expected[name.replace("lora_magnitude_vector", "weight")]
        rows *= (norm / torch.linalg.norm(rows, dim=1))[:, None]
    convert_weights(base, tmp_path / "merged.gguf", type="f32", lora=adapter)
    found = tensors_of(tmp_path / "merged.gguf")
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        np.testing.assert_allclose(
            found[f"blk.{layer}.ffn_down.weight"], expected[name], rtol=1e-5, atol=1e-6
        )


def test_biases_are_merged(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save_base(base, "qwen2")
    weights = load_file(base / "model.safetensors")
    more = {
        name.replace("q_proj.bias", "q_proj.base_layer.bias"): each + 0.5
        for name, each in weights.items()
        if name.endswith(("q_proj.bias", "k_proj.bias"))
    }
    changes = save_adapter(adapter, base, r".*q_proj", more=more, bias="all")
    biases = {name.replace(".base_layer", ""): each for name, each in more.items()}
    convert_weights(base, tmp_path / "merged.gguf", type="f32", lora=adapter)
    expected = with_weights(base, merge(weights | biases, changes))
    assert relative_error(logits(tmp_path / "merged.gguf"), expected) < 1e-4


def test_a_merged_model_is_quantized_after_the_merge(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    changes = save_adapter(adapter, base, r".*_proj")
    merged = tmp_path / "merged"
    shutil.copytree(base, merged)
    save_file(merge(load_file(base / "model.safetensors"), changes), merged / "model.safetensors")
    convert_weights(base, tmp_path / "ours.gguf", type="q4_0", lora=adapter)
    convert_weights(merged, tmp_path / "theirs.gguf", type="q4_0")
    ours, theirs = tensors_of(tmp_path / "ours.gguf"), tensors_of(tmp_path / "theirs.gguf")
    for name, data in theirs.items():
        assert np.mean(data == ours[name]) > 0.999, name  # float32's rounding moves a weight here and there


def test_an_adapter_is_merged_into_a_quantized_base_model(tmp_path: Path) -> None:
    base, plain = tmp_path / "base", tmp_path / "plain"
    save_quantized(base, {"quant_method": "fp8", "weight_block_size": [128, 128]}, fp8(128, 128))
    convert_weights(base, tmp_path / "base.gguf", type="f32")
    save_checkpoint(plain, num_hidden_layers=1, intermediate_size=384, tie_word_embeddings=True)
    changes = save_adapter(tmp_path / "adapter", plain, r".*down_proj")
    convert_weights(base, tmp_path / "merged.gguf", type="f32", lora=tmp_path / "adapter")
    name = "model.layers.0.mlp.down_proj.weight"
    before, after = (tensors_of(tmp_path / f"{each}.gguf") for each in ("base", "merged"))
    weight = torch.from_numpy(before["blk.0.ffn_down.weight"].copy())
    expected = merge({name: weight}, changes)[name]
    np.testing.assert_allclose(after.pop("blk.0.ffn_down.weight"), expected, rtol=1e-5, atol=1e-5)
    for other, data in after.items():
        np.testing.assert_array_equal(data, before[other])


def test_an_adapter_of_a_multimodal_model_changes_its_text_model(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*_proj", base_model_name_or_path=str(base))
    convert(adapter, tmp_path / "text.gguf", type="f32")
    convert_weights(base, tmp_path / "text-merged.gguf", type="f32", lora=adapter)
    plain = Path(shutil.copytree(adapter, tmp_path / "plain"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": config}))
    for file, inside in (
        (base / "model.safetensors", "{}"),
        (adapter / "adapter_model.safetensors", "base_model.model.{}"),
    ):
        tensors = load_file(file)
        renamed = {
            name.replace("model.layers", "model.language_model.layers")
            .replace(EMBEDDINGS, "model.language_model.embed_tokens.weight")
            .replace(NORM, "model.language_model.norm.weight"): each
            for name, each in tensors.items()
        }
        part = "model.vision_tower.x_proj"
        more = (
            {f"{part}.weight": torch.ones(4, 4)}
            if inside == "{}"
            else {f"{part}.lora_{each}.weight": torch.ones(4, 4) for each in "AB"}
        )
        save_file(renamed | {inside.format(name): each for name, each in more.items()}, file)
    convert(plain, tmp_path / "plain.gguf", type="f32", base=base)  # trained on the text model alone
    assert contents(tmp_path / "plain.gguf")[1] == contents(tmp_path / "text.gguf")[1]
    convert(adapter, tmp_path / "vision.gguf", type="f32")
    convert_weights(base, tmp_path / "vision-merged.gguf", type="f32", lora=adapter)
    assert contents(tmp_path / "vision.gguf") == contents(tmp_path / "text.gguf")
    assert contents(tmp_path / "vision-merged.gguf")[1] == contents(tmp_path / "text-merged.gguf")[1]
