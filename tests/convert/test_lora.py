"""LoRA adapters against transformers' logits, PEFT's scale, and upstream's converter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conformance import ROWS, witness
from hf_checkpoints import convert_weights
from libraries import HELPERS, relative_error
from lora_adapters import (
    ALL_BUT_TIED,
    ALPHA,
    EMBEDDINGS,
    HEAD,
    MODULES,
    NO_SCALING,
    RANK,
    TOKENS,
    logits,
    merge,
    save_adapter,
    save_base,
    stabilized,
    tensors_of,
    with_weights,
)
from safetensors.torch import load_file
from tiny_gguf import contents
from upstream_tree import unpack_converter

from yarn_gguf.convert import convert
from yarn_gguf.convert.arch.deepseek import DeepSeek
from yarn_gguf.errors import ConversionError, ModelLoadError


@pytest.mark.parametrize("name", ROWS)
def test_an_adapter_and_a_merged_model_compute_w_plus_b_a(tmp_path: Path, name: str) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    plain = witness(save_base(base, name), ROWS[name], NO_SCALING, TOKENS)
    changes = save_adapter(adapter, base, MODULES.get(name, ALL_BUT_TIED))
    expected = with_weights(base, merge(load_file(base / "model.safetensors"), changes))
    assert relative_error(plain, expected) > 0.1
    convert_weights(base, tmp_path / "base.gguf", type="f32")
    convert(adapter, tmp_path / "adapter.gguf", type="f32")
    convert_weights(base, tmp_path / "merged.gguf", type="f32", lora=adapter)
    assert relative_error(logits(tmp_path / "base.gguf", tmp_path / "adapter.gguf"), expected) < 1e-4
    assert relative_error(logits(tmp_path / "merged.gguf"), expected) < 1e-4


def test_an_adapter_of_embeddings_and_output_computes_w_plus_b_a(base: Path, tmp_path: Path) -> None:
    """PEFT saves a copy of the weights of these two; it is the base model's here."""
    adapter, weights = tmp_path / "adapter", load_file(base / "model.safetensors")
    copies = {
        f"{name.removesuffix('.weight')}.base_layer.weight": weights[name] for name in (EMBEDDINGS, HEAD)
    }
    changes = save_adapter(adapter, base, ".*", more=copies)
    expected = with_weights(base, merge(weights, changes))
    convert_weights(base, tmp_path / "base.gguf", type="f32")
    convert(adapter, tmp_path / "adapter.gguf", type="f32")
    convert_weights(base, tmp_path / "merged.gguf", type="f32", lora=adapter)
    assert relative_error(logits(tmp_path / "base.gguf", tmp_path / "adapter.gguf"), expected) < 1e-4
    assert relative_error(logits(tmp_path / "merged.gguf"), expected) < 1e-4


def test_llama_cpp_ignores_the_adapters_that_are_refused_for_deepseek(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save_base(base, "deepseek-v3")
    save_adapter(adapter, base, r".*(q_a_proj|q_b_proj|kv_a_proj_with_mqa)")
    with pytest.raises(ConversionError, match=r"llama.cpp ignores that for deepseek2 models: merge"):
        convert(adapter, tmp_path / "adapter.gguf", type="f32")
    monkeypatch.setattr(DeepSeek, "without_lora", ())
    convert_weights(base, tmp_path / "base.gguf", type="f32")
    convert(adapter, tmp_path / "adapter.gguf", type="f32")
    plain, changed = logits(tmp_path / "base.gguf"), logits(tmp_path / "base.gguf", tmp_path / "adapter.gguf")
    np.testing.assert_array_equal(plain, changed)


def test_an_adapter_that_would_end_the_process_is_refused_as_it_is_loaded(tmp_path: Path) -> None:
    """llama.cpp ends it for a pair of tied embeddings, and for too few experts."""
    for name, config in (("untied", {}), ("tied", {"tie_word_embeddings": True})):
        save_base(tmp_path / name, **config)
    for name, count in (("four", 4), ("two", 2)):
        save_base(tmp_path / name, "qwen3-moe", num_experts=count)
    for trained, used, modules, message in (
        (
            "untied",
            "tied",
            r".*embed_tokens",
            "changes token_embd.weight, which is the output projection",
        ),
        ("two", "four", r".*experts.*", r"lora_a is of \(2,\) experts, and .*four.gguf has \(4,\)"),
    ):
        adapter, model = tmp_path / f"{trained}-adapter", tmp_path / f"{used}.gguf"
        save_adapter(adapter, tmp_path / trained, modules)
        convert(adapter, tmp_path / "adapter.gguf", type="f32", force=True)
        convert_weights(tmp_path / used, model, type="f32")
        with pytest.raises(ModelLoadError, match=message):
            logits(model, tmp_path / "adapter.gguf")


@pytest.mark.parametrize(
    "name", [each if each == "llama" else pytest.param(each, marks=pytest.mark.slow) for each in ROWS]
)
def test_an_adapters_file_is_the_one_of_upstreams_converter(tmp_path: Path, name: str) -> None:
    base, adapter, types = tmp_path / "base", tmp_path / "adapter", ("f32", "f16", "bf16", "q8_0")
    save_base(base, name)
    modules = ".*" if name == "llama" else MODULES.get(name, ALL_BUT_TIED)
    save_adapter(
        adapter,
        base,
        modules,
        rank=lambda module: 32 if "self_attn" in module else 4,
        r=4,
        rank_pattern={r".*self_attn.*": 32},
        dtype=torch.bfloat16,
    )
    tree = unpack_converter(tmp_path / "upstream")
    command = [sys.executable, HELPERS / "upstream_lora_converter.py", tree, adapter, base, tmp_path, *types]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for type_ in types:
        convert(adapter, tmp_path / "ours.gguf", type=type_, force=True)
        assert contents(tmp_path / "ours.gguf") == contents(tmp_path / f"{type_}.gguf"), type_


def rank_by_layer(module: str) -> int:
    return 2 if "layers.1" in module else RANK


def alpha_by_layer(module: str, rank: int) -> float:
    return (3 if "layers.0" in module else ALPHA) / rank


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, lambda module, rank: ALPHA / rank),
        ({"use_rslora": True}, stabilized),
        ({"rank_pattern": {r"layers\.1\..*": 2}}, lambda module, rank: ALPHA / rank),
        ({"rank_pattern": {r"layers\.1\..*": 2}, "use_rslora": True}, stabilized),
        ({"alpha_pattern": {"layers.0.self_attn.v_proj": 3, "other": 5}}, alpha_by_layer),
    ],
)
def test_a_pair_is_scaled_as_peft_scales_it(base: Path, tmp_path: Path, config: dict, scale) -> None:
    """llama.cpp adds alpha / rank * B A, with one alpha for all."""
    adapter, weights = tmp_path / "adapter", load_file(base / "model.safetensors")
    rank = rank_by_layer if "rank_pattern" in config else lambda module: RANK
    changes = save_adapter(adapter, base, r".*v_proj", rank=rank, **config)
    convert(adapter, tmp_path / "adapter.gguf", type="f32")
    convert_weights(base, tmp_path / "merged.gguf", type="f32", lora=adapter)
    alpha = gguf.GGUFReader(tmp_path / "adapter.gguf").fields["adapter.lora.alpha"].contents()
    found, merged = tensors_of(tmp_path / "adapter.gguf"), tensors_of(tmp_path / "merged.gguf")
    expected = merge(weights, changes, scale)
    for layer in range(2):
        name, ggml_name = f"model.layers.{layer}.self_attn.v_proj.weight", f"blk.{layer}.attn_v.weight"
        a, b = (found[f"{ggml_name}.lora_{each}"].astype(np.float64) for each in "ab")
        change = alpha / len(a) * b @ a
        np.testing.assert_allclose(weights[name].numpy() + change, expected[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(merged[ggml_name], expected[name], rtol=1e-5, atol=1e-6)
        if "alpha_pattern" not in config and len({rank(name), RANK}) == 1:
            stored = changes[f"{name.removesuffix('.weight')}.lora_B.weight"]
            np.testing.assert_array_equal(found[f"{ggml_name}.lora_b"], stored)  # nothing was rounded
