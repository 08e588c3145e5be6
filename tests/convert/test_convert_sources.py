"""Which files and tensors of a checkpoint are converted: those that transformers loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from hf_checkpoints import convert_weights, save_checkpoint, save_in_shards
from libraries import logits, patched, relative_error
from safetensors.torch import load_file, save_file

from yarn_gguf.errors import ConversionError

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 96,
}
TOKENS = list(range(3, 43))
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def loaded(folder: Path) -> transformers.PreTrainedModel:
    """Return the checkpoint as transformers loads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def stored(path: Path) -> dict[str, np.ndarray]:
    return {each.name: each.data for each in gguf.GGUFReader(path).tensors}


def converted(folder: Path) -> dict[str, np.ndarray]:
    (path,) = convert_weights(folder, folder / "out.gguf", type="f32", force=True)
    return stored(path)


def assert_as_transformers(folder: Path) -> None:
    """Compare embedding and output layer of the file with those that transformers loads."""
    tensors, model = converted(folder), loaded(folder)
    embedding = model.get_input_embeddings().weight.detach().numpy()
    head = model.get_output_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(tensors["token_embd.weight"], embedding)
    np.testing.assert_array_equal(tensors.get("output.weight", tensors["token_embd.weight"]), head)


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / WHOLE)
    change(weights)
    save_file(weights, folder / WHOLE, metadata={"format": "pt"})


def edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


# ---- the output layer ------------------------------------------------------------------------


NAMES = {"gpt_neox": ("gpt_neox.embed_in.weight", "embed_out.weight")}
LLAMA_NAMES = ("model.embed_tokens.weight", "lm_head.weight")
TIED = {
    "llama": {},
    "qwen3": {"head_dim": 32},
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64},
    "starcoder2": {},
    "smollm3": {"num_hidden_layers": 4},
    "gpt_neox": {},
    "olmo2": {},
}
GEMMA_2 = {"head_dim": 32, "query_pre_attn_scalar": 32}
NEED_OUTPUT = ("gpt_neox", "olmo2")


def save_tied(folder: Path, model_type: str = "llama", **config: Any) -> tuple[str, str]:
    """Save a tied checkpoint. Return the names of its embedding and of its output layer."""
    save_checkpoint(folder, model_type, **{**SMALL, "tie_word_embeddings": True, **config})
    return NAMES.get(model_type, LLAMA_NAMES)


def change_head(folder: Path, embedding: str, head: str) -> None:
    edit_weights(folder, lambda weights: weights.update({head: weights[embedding].flip(0).clone()}))


@pytest.mark.parametrize("model_type", TIED)
def test_an_output_layer_that_differs_is_kept_although_config_json_ties_it(
    model_type: str, tmp_path: Path, caplog
) -> None:
    change_head(tmp_path, *save_tied(tmp_path, model_type, **TIED[model_type]))
    assert_as_transformers(tmp_path)
    assert "output.weight" in stored(tmp_path / "out.gguf")
    assert "tie_word_embeddings is true, but" in caplog.text


def test_the_logits_with_an_output_layer_that_differs_are_transformers(tmp_path: Path) -> None:
    change_head(tmp_path, *save_tied(tmp_path))
    convert_weights(tmp_path, tmp_path / "out.gguf", type="f32")
    with torch.no_grad():
        expected = loaded(tmp_path)(torch.tensor([TOKENS])).logits[0].numpy()
    got = logits(patched(), tmp_path / "out.gguf", TOKENS, type_k=0, type_v=0, flash_attn_type=0)
    assert relative_error(got, expected) < 1e-5


@pytest.mark.parametrize("model_type", [*TIED, "gemma2"])
def test_an_output_layer_that_is_the_embedding_is_left_out(model_type: str, tmp_path: Path, caplog) -> None:
    embedding, head = save_tied(tmp_path, model_type, **TIED.get(model_type, GEMMA_2))
    edit_weights(tmp_path, lambda weights: weights.update({head: weights[embedding].clone()}))
    assert_as_transformers(tmp_path)
    assert ("output.weight" in stored(tmp_path / "out.gguf")) == (model_type in NEED_OUTPUT)
    assert "tie_word_embeddings" not in caplog.text


@pytest.mark.parametrize("model_type", TIED)
def test_a_tied_weight_may_be_saved_under_either_name(model_type: str, tmp_path: Path) -> None:
    embedding, head = save_tied(tmp_path, model_type, **TIED[model_type])
    assert_as_transformers(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update({head: weights.pop(embedding)}))
    assert_as_transformers(tmp_path)


def test_one_value_that_differs_in_the_last_row_counts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("yarn_gguf.convert.tensor._PIECE", 1000)

    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["lm_head.weight"][-1, -1] += 1

    save_tied(tmp_path)
    edit_weights(tmp_path, change)
    assert_as_transformers(tmp_path)
    assert "output.weight" in stored(tmp_path / "out.gguf")


def test_an_output_layer_that_llama_cpp_would_not_read_is_refused(tmp_path: Path) -> None:
    change_head(tmp_path, *save_tied(tmp_path, "gemma2", **GEMMA_2))
    with pytest.raises(ConversionError, match=r"lm_head.weight differs from .*gemma2 models: run this"):
        converted(tmp_path)


def test_an_output_layer_that_llama_cpp_takes_from_the_embedding_needs_no_tie(tmp_path: Path) -> None:
    embedding, head = save_tied(tmp_path, "gemma2", **GEMMA_2)
    edit_weights(tmp_path, lambda weights: weights.update({head: weights[embedding].clone()}))
    edit_config(tmp_path, tie_word_embeddings=False)
    assert_as_transformers(tmp_path)


def test_an_embedding_that_is_missing_and_not_tied_is_refused(tmp_path: Path) -> None:
    embedding, _ = save_tied(tmp_path, tie_word_embeddings=False)
    edit_weights(tmp_path, lambda weights: weights.pop(embedding))
    with pytest.raises(ConversionError, match=r"do not make the model .*token_embd.weight"):
        converted(tmp_path)


@pytest.mark.parametrize("tie", [False, None])
def test_an_output_layer_that_is_missing_and_not_tied_is_refused(tie: bool | None, tmp_path: Path) -> None:
    """transformers fills it with random numbers."""
    save_tied(tmp_path, tie_word_embeddings=False)
    edit_weights(tmp_path, lambda weights: weights.pop("lm_head.weight"))
    edit_config(tmp_path, tie_word_embeddings=tie)
    with pytest.raises(ConversionError, match=r"no lm_head.weight, .* is not true: set it to true if"):
        converted(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    assert_as_transformers(tmp_path)


# ---- the files -------------------------------------------------------------------------------


def put_others_beside(folder: Path) -> Path:
    """Save an older checkpoint in shards beside the one in `folder`, and return their index."""
    older = folder / "older"
    save_checkpoint(older)
    edit_weights(older, lambda weights: weights["model.embed_tokens.weight"].zero_())
    index = save_in_shards(older)
    for each in older.glob("model*"):
        shutil.move(each, folder / each.name)
    return folder / index.name


def as_pytorch(folder: Path) -> None:
    """Turn the files of weights in `folder`, and their index, into those of PyTorch."""
    for file in folder.glob("model*.safetensors"):
        name = file.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
        torch.save(load_file(file), folder / name)
        file.unlink()
    for index in folder.glob(INDEX):
        text = index.read_text().replace('"model-', '"pytorch_model-').replace(".safetensors", ".bin")
        (folder / BIN_INDEX).write_text(text)
        index.unlink()


KINDS = pytest.mark.parametrize("turn", [lambda folder: None, as_pytorch], ids=["safetensors", "pytorch"])


@KINDS
def test_the_single_file_counts_before_a_stale_index(folder: Path, turn, caplog) -> None:
    put_others_beside(folder)
    turn(folder)
    assert_as_transformers(folder)
    assert "and not the shards of" in caplog.text


def test_safetensors_count_before_pytorch_files(folder: Path) -> None:
    weights = load_file(folder / WHOLE)
    torch.save({name: tensor * 0 for name, tensor in weights.items()}, folder / BIN)
    assert_as_transformers(folder)
    save_in_shards(folder)
    assert_as_transformers(folder)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "model-00001-of-00009.fp16.safetensors"])
def test_a_variant_beside_the_weights_changes_nothing(name: str, folder: Path) -> None:
    shutil.copy(folder / WHOLE, folder / name)
    assert_as_transformers(folder)
    save_in_shards(folder)
    assert_as_transformers(folder)
    (folder / INDEX).unlink()  # transformers gives up then
    assert len(converted(folder)) == 75


@KINDS
def test_a_shard_alone_is_refused(folder: Path, turn) -> None:
    index = save_in_shards(folder)
    count = len(list(folder.glob("model-*")))
    index.unlink()
    turn(folder)
    assert len(converted(folder)) == 75  # all shards, which their names number
    for each in sorted(folder.glob("*model-*"))[1:]:
        each.unlink()
    with pytest.raises(ConversionError, match=rf"of {count} shards number 2 is missing, and so is"):
        converted(folder)
    with pytest.raises(OSError, match="no file named"):
        loaded(folder)


def test_shards_of_two_checkpoints_without_index_are_refused(folder: Path) -> None:
    save_in_shards(folder).unlink()
    shutil.copy(next(folder.glob("model-*")), folder / "model-00001-of-00001.safetensors")
    with pytest.raises(ConversionError, match=f"shards of 2 checkpoints, and no {INDEX}"):
        converted(folder)


def test_a_file_of_another_name_is_named_and_not_guessed(folder: Path) -> None:
    (folder / WHOLE).rename(folder / "model.fp16.safetensors")
    with pytest.raises(ConversionError, match=r"if model.fp16.safetensors has the weights, give it such"):
        converted(folder)
    with pytest.raises(OSError, match="no file named"):
        loaded(folder)


@KINDS
def test_an_index_may_name_buffers_that_are_left_out(folder: Path, turn) -> None:
    names = [f"model.layers.0.self_attn.{each}" for each in ("rotary_emb.inv_freq", "attention.masked_bias")]
    edit_weights(folder, lambda weights: weights.update({name: torch.ones(4) for name in names}))
    weights = load_file(folder / WHOLE)
    shard = "model-00001-of-00001.safetensors"
    save_file(weights, folder / shard, metadata={"format": "pt"})
    (folder / WHOLE).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}))
    turn(folder)
    assert_as_transformers(folder)
    assert len(converted(folder)) == len(weights) - len(names)


@pytest.mark.parametrize("places", [{}, {"model.layers.0.self_attn.rotary_emb.inv_freq": WHOLE}])
def test_an_index_that_names_no_weights_is_refused(folder: Path, places: dict[str, str]) -> None:
    (folder / WHOLE).rename(folder / "other.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ConversionError, match=rf"{INDEX}: it names no weights"):
        converted(folder)


def test_config_json_may_name_the_file_of_the_weights(folder: Path) -> None:
    index = put_others_beside(folder)
    (folder / WHOLE).rename(folder / "consolidated.safetensors")
    edit_config(folder, transformers_weights="consolidated.safetensors")
    assert_as_transformers(folder)
    edit_config(folder, transformers_weights=index.name)
    assert_as_transformers(folder)
    for name in ("../hf/model.safetensors", "consolidated.bin", 7):
        edit_config(folder, transformers_weights=name)
        with pytest.raises(ConversionError, match=r"transformers_weights is .*: a .safetensors beside it"):
            converted(folder)
    edit_config(folder, transformers_weights="none.safetensors")
    with pytest.raises(ConversionError, match=r"transformers_weights is none.safetensors, which is missing"):
        converted(folder)
