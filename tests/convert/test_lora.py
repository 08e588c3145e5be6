"""LoRA adapters, converted to GGUF adapters and merged, against transformers, PEFT's formula and upstream."""

from __future__ import annotations

import json
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
from yarn_gguf.errors import ConversionError, ModelLoadError

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


# ---- scales ----------------------------------------------------------------------------------


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


# ---- merging more than pairs -----------------------------------------------------------------


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


def test_embeddings_that_were_trained_part_from_a_tied_output(tmp_path: Path) -> None:
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


def test_embeddings_that_part_from_gemma_2s_output_are_refused(tmp_path: Path) -> None:
    """llama.cpp has one tensor for both."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save_base(base, "gemma2")
    more = {EMBEDDINGS: load_file(base / "model.safetensors")[EMBEDDINGS] * 1.25}
    save_adapter(adapter, base, r".*_proj", more=more, modules_to_save=["embed_tokens"])
    with pytest.raises(ConversionError, match="takes one for both in gemma2 models"):
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


# ---- what is refused -------------------------------------------------------------------------


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


# ---- where things are ------------------------------------------------------------------------


def test_the_base_models_config_is_enough(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*_proj")
    convert(adapter, tmp_path / "with.gguf", type="f16")
    (base / "model.safetensors").unlink()
    convert(adapter, tmp_path / "without.gguf", type="f16", base=base)
    assert contents(tmp_path / "without.gguf") == contents(tmp_path / "with.gguf")


def test_a_base_model_that_is_quantized_is_not_compared(base: Path, tmp_path: Path) -> None:
    """QLoRA's base models have packed weights of other shapes."""
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*_proj")
    convert(adapter, tmp_path / "plain.gguf", type="f16")
    save_file({"x.weight": torch.zeros(8, 1, dtype=torch.uint8)}, base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    quantized = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (base / "config.json").write_text(json.dumps(config | quantized))
    convert(adapter, tmp_path / "quantized.gguf", type="f16")
    assert contents(tmp_path / "quantized.gguf") == contents(tmp_path / "plain.gguf")


def test_a_pytorch_file_gives_the_same_adapter(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*_proj", dtype=torch.bfloat16)
    convert(adapter, tmp_path / "safetensors.gguf", type="f16")
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    convert(adapter, tmp_path / "bin.gguf", type="f16")
    assert contents(tmp_path / "bin.gguf") == contents(tmp_path / "safetensors.gguf")


@pytest.mark.parametrize("name", ["meta-llama/Llama-2-7b-hf", "", None])
def test_a_base_model_that_is_not_here_is_asked_for(base: Path, tmp_path: Path, name: str | None) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*v_proj", base_model_name_or_path=name)
    with pytest.raises(ConversionError, match=r"no such folder has a config.json: give the .* with --base"):
        convert(adapter, tmp_path / "out.gguf", type="f32")


def test_an_adapter_beside_full_weights_is_left_out_with_a_warning(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers applies it if PEFT is installed, and loads the weights alone if not."""
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*v_proj")
    convert_weights(base, tmp_path / "plain.gguf", type="f32")
    convert(adapter, tmp_path / "adapter.gguf", type="f32", base=base)
    assert not caplog.records
    for file in adapter.iterdir():
        shutil.copy(file, base)
    convert_weights(base, tmp_path / "beside.gguf", type="f32")
    assert contents(tmp_path / "beside.gguf")[1] == contents(tmp_path / "plain.gguf")[1]
    (said,) = [each.getMessage() for each in caplog.records]
    assert f"{base}: an adapter lies beside the weights and is left out" in said
    assert f"merge it with --lora {base}" in said
    convert_weights(base, tmp_path / "merged.gguf", type="f32", lora=base)
    assert contents(tmp_path / "merged.gguf")[1] != contents(tmp_path / "plain.gguf")[1]
    convert(base, tmp_path / "asked.gguf", type="f32", base=base)
    assert contents(tmp_path / "asked.gguf")[1] == contents(tmp_path / "adapter.gguf")[1]


def test_a_rope_scaling_beside_an_adapter_is_not_forgotten(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Trainers save the config.json of the training there."""
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*v_proj")
    shutil.copy(base / "config.json", adapter)
    convert_weights(base, tmp_path / "same.gguf", type="f16", lora=adapter)
    convert(adapter, tmp_path / "same-adapter.gguf", type="f16")
    assert not caplog.records
    config = json.loads((base / "config.json").read_text())
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "rope_theta": 1e4}
    (adapter / "config.json").write_text(json.dumps(config | {"rope_parameters": yarn}))
    with pytest.raises(ConversionError, match=r"rope scaling yarn:4, .* and the base model has .* none"):
        convert_weights(base, tmp_path / "out.gguf", type="f16", lora=adapter)
    convert_weights(base, tmp_path / "out.gguf", type="f16", lora=adapter, scaling=RopeScaling("yarn", 4.0))
    convert(adapter, tmp_path / "adapter.gguf", type="f16")
    assert "an adapter has no scaling: give the base model's file this one" in caplog.text


def test_the_adapters_own_tokenizer_is_the_merged_models(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, r".*v_proj")
    with pytest.raises(ConversionError, match=r"no tokenizer.json and no tokenizer.model") as caught:
        plan_conversion(base, type="f32", lora=adapter)
    assert str(base) in str(caught.value)
    (adapter / "tokenizer.json").write_text("{")
    with pytest.raises(ConversionError, match="not JSON") as caught:
        plan_conversion(base, type="f32", lora=adapter)
    assert str(adapter / "tokenizer.json") in str(caught.value)


def test_an_adapter_given_as_a_model_is_called_an_adapter(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_adapter(tmp_path / "adapter", base, r".*v_proj")
    convert(tmp_path / "adapter", tmp_path / "adapter.gguf", type="f16")
    assert main(["inspect", str(tmp_path / "adapter.gguf")]) == 1
    assert "adapter.gguf is a LoRA adapter: give the file of its model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--type", "q4_k_m"], "an adapter can be f32, f16, bf16, q8_0"),
        (["--type", "f16", "--factor", "4"], "a rope scaling does not apply to an adapter"),
        (["--type", "f16", "--lora", "x"], "--lora does not apply to an adapter"),
        (["--type", "f16", "--split-max-size", "1M"], "--split-max-size does not apply to an adapter"),
    ],
)
def test_options_of_a_model_are_refused_for_an_adapter(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    save_adapter(tmp_path / "adapter", base, r".*v_proj")
    assert main(["convert", str(tmp_path / "adapter"), "-o", str(tmp_path / "out.gguf"), *options]) == 1
    assert message in capsys.readouterr().err


def test_the_command_writes_an_adapter_and_a_merged_model(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, output = tmp_path / "adapter", tmp_path / "out.gguf"
    save_adapter(adapter, base, r".*v_proj", base_model_name_or_path="somewhere/else")
    command = ["convert", str(adapter), "-o", str(output), "--type", "f16", "--base", str(base)]
    assert main([*command, "--dry-run"]) == 0
    assert "blk.0.attn_v.weight.lora_a" in capsys.readouterr().out
    assert not output.exists()
    assert main(command) == 0
    assert gguf.GGUFReader(output).fields["general.type"].contents() == "adapter"
    command = ["convert", str(base), "-o", str(output), "--type", "f16", "--no-tokenizer", "--force"]
    assert main([*command, "--lora", str(adapter)]) == 0
    assert gguf.GGUFReader(output).fields["general.type"].contents() == "model"
    assert main([*command, "--base", str(base)]) == 1
    assert "has no LoRA adapter: leave out --base" in capsys.readouterr().err
