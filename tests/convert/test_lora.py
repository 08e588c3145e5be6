"""LoRA adapters, converted to GGUF adapters and merged, against transformers, PEFT's formula and upstream."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from conformance import ROWS, make_model, use_ggml_gelu, witness
from hf_checkpoints import convert_weights
from libraries import HELPERS, relative_error
from lora_adapters import ALPHA, RANK, merge, save_adapter, stabilized
from safetensors.torch import load_file, save_file
from tiny_gguf import contents
from upstream_tree import unpack_converter

from yarn_gguf import Llama, RopeScaling
from yarn_gguf.cli import main
from yarn_gguf.convert import convert
from yarn_gguf.convert.arch.deepseek import DeepSeek
from yarn_gguf.convert.plan import plan_conversion
from yarn_gguf.errors import ConversionError

TOKENS = np.random.default_rng(1).integers(3, 250, 40).tolist()
NO_SCALING = RopeScaling()
NORM, EMBEDDINGS, HEAD = "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"
# llama.cpp ignores an adapter for DeepSeek's other projections of the attention
MODULES = {"deepseek-v2": r".*(o_proj|mlp.*)", "deepseek-v3": r".*(o_proj|mlp.*)"}
ALL_BUT_TIED = r".*(?<!lm_head)(?<!embed_tokens)(?<!embed_in)(?<!embed_out)"


def save_base(folder: Path, name: str = "llama", **config: object) -> transformers.PreTrainedModel:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = make_model(replace(ROWS[name], config=ROWS[name].config | config), NO_SCALING)
    model.save_pretrained(folder)
    return model


def with_weights(base: Path, weights: dict[str, torch.Tensor], **config: object) -> np.ndarray:
    """Return transformers' logits of the base model with other weights."""
    folder = base.with_name("other")
    shutil.copytree(base, folder)
    save_file({name: each.contiguous() for name, each in weights.items()}, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    use_ggml_gelu(model)
    return witness(model, ROWS["llama"], NO_SCALING, TOKENS)


def logits(file: Path, adapter: Path | None = None) -> np.ndarray:
    """Return the library's logits of a file with an adapter."""
    settings = {"type_k": 0, "type_v": 0, "flash_attn": False, "verbose": False}
    lora_path = None if adapter is None else str(adapter)
    with closing(Llama(str(file), n_ctx=64, logits_all=True, lora_path=lora_path, **settings)) as model:
        model.eval(TOKENS)
        return np.array(model.scores[: len(TOKENS)])


def tensors_of(file: Path) -> dict[str, np.ndarray]:
    return {each.name: np.array(each.data) for each in gguf.GGUFReader(file).tensors}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_base(tmp_path / "base")
    return tmp_path / "base"


# ---- logits ----------------------------------------------------------------------------------


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
    with pytest.raises(ConversionError, match="llama.cpp ignores that for deepseek2 models: merge"):
        convert(adapter, tmp_path / "adapter.gguf", type="f32")
    monkeypatch.setattr(DeepSeek, "without_lora", ())
    convert_weights(base, tmp_path / "base.gguf", type="f32")
    convert(adapter, tmp_path / "adapter.gguf", type="f32")
    plain, changed = logits(tmp_path / "base.gguf"), logits(tmp_path / "base.gguf", tmp_path / "adapter.gguf")
    np.testing.assert_array_equal(plain, changed)


# ---- the same file as upstream's -------------------------------------------------------------


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
