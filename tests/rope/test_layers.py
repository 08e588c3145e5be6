"""The kinds of layers of a model: against llama.cpp's sources, the library itself, and transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hf_checkpoints import convert_weights, save_checkpoint
from libraries import ROOT, logits, patched
from test_architectures import MODELS, facts_of, scales_windows
from tiny_gguf import write_tiny
from upstream_models import UpstreamModel

from yarn_gguf import RopeScaling, extend
from yarn_gguf.native.memory import PaperModel, memory_of
from yarn_gguf.rope.architectures import UNROTATED_PERIOD, VARIED, WINDOWS, Windows
from yarn_gguf.rope.hf_config import read_config
from yarn_gguf.rope.hf_rope import rope_of
from yarn_gguf.rope.layers import FULL, NO_ATTENTION, WINDOW, LayerKind, layer_kinds, layer_kinds_of
from yarn_gguf.rope.read import read_model

FULL_ROTATES_NOT = re.compile(
    r"use_rope = [^;]*(?:hparams\.is_swa\(il\)|n_no_rope_layer_step)|"
    r"if \((?:is_swa|is_local_layer)\) \{\s*(?:ggml_tensor \* rope_factors[^;]*;\s*)?Qcur = ggml_rope_ext"
)
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3_text": {"query_pre_attn_scalar": 32},
    "olmo3": {},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
S, F = "sliding_attention", "full_attention"
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


def checkpoint(folder: Path, model_type: str, layer_types: list[str], rope: dict | None = None) -> Path:
    """Save a tiny checkpoint with windows of 64 tokens, and the rope parameters of its full layers."""
    is_nested = model_type in ("gemma3_text", "olmo3")
    full = PLAIN | (rope or {})
    config = {
        "rope_parameters": {F: full, S: PLAIN} if is_nested else full,
        "layer_types": layer_types,
        "num_hidden_layers": len(layer_types),
        "sliding_window": 64,
        "initializer_range": 0.15,  # attention that depends on positions
    }
    return save_checkpoint(folder, model_type, **(config | CHECKPOINTS[model_type]))


# ---- the sources of llama.cpp ----------------------------------------------------------------


def windows_of(model: UpstreamModel) -> Windows | None:
    """Read the facts off the C++ text; None for an architecture without such layers."""
    text = model.load_hparams
    if not re.search(r"swa_type\s*= LLAMA_SWA_TYPE_(?!NONE)", text):
        return None
    pattern = re.search(r"load_swa_pattern\(ml, (\d+)(, [^)]*true)?\)", text)
    before, _, after = text.partition("LLM_KV_ATTENTION_SLIDING_WINDOW,")
    default, fixed = (re.search(r"n_swa\s*= ([1-9]\d*);", part) for part in (before, after))
    is_default_too = fixed is not None and "found_swa && hparams.n_swa == 0" in text
    return Windows(
        period=int(pattern[1]) if pattern else 0,
        full_first=bool(pattern and pattern[2]),
        size=int(default[1]) if default else int(fixed[1]) if is_default_too else 0,
        fixed_size=int(fixed[1]) if fixed else 0,
        has_own_base=not re.search(r"rope_freq_base_train_swa\s*= hparams.rope_freq_base_train;", text),
        scaled=scales_windows(model) and not facts_of(model).windows_get_base,
        rotates_full=not FULL_ROTATES_NOT.search(model.graph),
    )


def test_the_table_of_windows_says_what_the_sources_say() -> None:
    found = {name: facts for name, model in MODELS.items() if (facts := windows_of(model))}
    assert {name: facts for name, facts in found.items() if name not in VARIED} == WINDOWS
    assert found.keys() - WINDOWS.keys() <= set(VARIED) <= MODELS.keys()


def test_the_patched_library_scales_the_windows_of_the_same_architectures() -> None:
    text = (ROOT / "cpp_patches" / "src" / "llama-rope-archs.cpp").read_text(encoding="utf-8")
    cases = set(re.findall(r"case (LLM_ARCH_\w+):", text))
    names = {model.name for model in MODELS.values() if model.enum in cases} - set(VARIED)
    assert {name for name, facts in WINDOWS.items() if facts.scaled} == names


def test_only_smollm3_leaves_out_rotation_by_a_period_alone() -> None:
    found = {name for name, model in MODELS.items() if "n_no_rope_layer_step != 0" in model.graph}
    assert found - WINDOWS.keys() == UNROTATED_PERIOD.keys()
    assert f"n_no_rope_layer_step = {UNROTATED_PERIOD['smollm3']};" in MODELS["smollm3"].load_hparams


# ---- the library -----------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", CHECKPOINTS)
def test_the_library_has_as_many_windows_as_are_counted(tmp_path: Path, model_type: str) -> None:
    folder = checkpoint(tmp_path / "hf", model_type, [S, S, F, S, F])
    (path,) = convert_weights(folder, tmp_path / "model.gguf", type="f32")
    paper = PaperModel(path, None)
    try:
        with paper.context(n_ctx=1024) as context:
            memory = memory_of(context)
    finally:
        paper.close()
    kinds = {each.name: each.layers for each in layer_kinds(read_model(path))}
    assert kinds == {FULL: memory.attention.layers, WINDOW: memory.window.layers} == {FULL: 2, WINDOW: 3}


@pytest.mark.parametrize("model_type", CHECKPOINTS)
def test_the_library_scales_the_windows_that_are_called_scaled(tmp_path: Path, model_type: str) -> None:
    """All layers have a window, and the text fits it. The logits differ only if the layers are scaled."""
    folder = checkpoint(tmp_path / "hf", model_type, [S, S])
    (path,) = convert_weights(folder, tmp_path / "plain.gguf", type="f32")
    scaled = extend(path, RopeScaling("linear", 4.0), output=tmp_path / "scaled.gguf").path
    tokens = np.random.default_rng(0).integers(3, 320, 48).tolist()
    plain, other = (logits(patched(), each, tokens) for each in (path, scaled))
    (kind,) = layer_kinds(read_model(scaled))
    assert kind.scaled == (not np.array_equal(plain, other))


# ---- transformers ----------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", CHECKPOINTS)
def test_transformers_scales_the_kinds_of_layers_that_are_called_scaled(
    tmp_path: Path, model_type: str
) -> None:
    folder = checkpoint(tmp_path, model_type, [S, F], {"rope_type": "linear", "factor": 4.0})
    config = read_config(folder)
    kinds = {each.name: each for each in layer_kinds_of(config, rope_of(config))}
    rotary = transformers.AutoModelForCausalLM.from_pretrained(folder).base_model.rotary_emb
    for name, prefix in ((FULL, f"{F}_"), (WINDOW, f"{S}_")):
        table = getattr(rotary, f"{prefix}inv_freq", None)
        first = (rotary.inv_freq if table is None else table)[0].item()
        assert first == pytest.approx(0.25 if kinds[name].scaled else 1.0)
    assert (kinds[WINDOW].window, kinds[FULL].window) == (64, None)


def test_windows_of_olmo_3_are_unscaled_also_where_config_json_does_not_tell_layers_apart(
    tmp_path: Path,
) -> None:
    """Published files have rope_scaling beside rope_theta."""
    checkpoint(tmp_path, "olmo3", [S, F])
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    del values["rope_parameters"]
    values |= {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    file.write_text(json.dumps(values))
    config = read_config(tmp_path)
    kinds = {each.name: each.scaled for each in layer_kinds_of(config, rope_of(config))}
    rotary = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).base_model.rotary_emb
    tables = {FULL: rotary.full_attention_inv_freq, WINDOW: rotary.sliding_attention_inv_freq}
    assert (
        kinds == {name: bool(table[0] < 1) for name, table in tables.items()} == {FULL: True, WINDOW: False}
    )


@pytest.mark.parametrize("model_type", CHECKPOINTS)
def test_a_file_and_its_checkpoint_have_the_same_kinds_of_layers(tmp_path: Path, model_type: str) -> None:
    folder = checkpoint(tmp_path / "hf", model_type, [S, S, F])
    (path,) = convert_weights(folder, tmp_path / "model.gguf", type="f32")
    config = read_config(folder)
    assert layer_kinds(read_model(path)) == sorted(
        layer_kinds_of(config, rope_of(config)), key=lambda each: each.name
    )


# ---- files without a checkpoint --------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "keys", "expected"),
    [
        ("llama", {}, [LayerKind(FULL, 12, None, 1e5, True)]),
        ("llama", {"attention__sliding_window": 64}, [LayerKind(FULL, 12, None, 1e5, True)]),
        ("gemma3", {"attention__sliding_window": 0}, [LayerKind(FULL, 12, None, 1e5, True)]),
        (
            "gemma3",
            {"attention__sliding_window": 512},
            [LayerKind(FULL, 2, None, 1e5, True), LayerKind(WINDOW, 10, 512, 1e4, False)],
        ),
        (
            "gemma2",
            {},
            [LayerKind(FULL, 6, None, 1e5, True), LayerKind(WINDOW, 6, 4096, 1e5, True)],
        ),
        (
            "olmo2",
            {"attention__sliding_window": 64, "rope__freq_base_swa": 5e5},
            [LayerKind(FULL, 3, None, 1e5, True), LayerKind(WINDOW, 9, 64, 5e5, False)],
        ),
        (
            "cohere2",
            {"attention__sliding_window": 64},
            [LayerKind(FULL, 3, None, None, False), LayerKind(WINDOW, 9, 64, 1e5, True)],
        ),
        (
            "smollm3",
            {},
            [LayerKind(FULL, 9, None, 1e5, True), LayerKind(FULL, 3, None, None, False)],
        ),
        (
            "granitehybrid",
            {"attention__head_count_kv": [0, 0, 0, 2] * 3},
            [LayerKind(FULL, 3, None, 1e5, True), LayerKind(NO_ATTENTION, 9, None, None, False)],
        ),
        ("qwen3next", {"full_attention_interval": 4}, []),
        ("exaone4", {}, []),
        ("gemma4", {"attention__sliding_window": 64}, []),
    ],
)
def test_kinds_of_layers_of_a_file(tmp_path: Path, arch: str, keys: dict, expected: list[LayerKind]) -> None:
    path = write_tiny(tmp_path / "a.gguf", arch, block_count=12, **keys)
    assert layer_kinds(read_model(path)) == expected
