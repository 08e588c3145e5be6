"""The table of facts about architectures, against the sources of the pinned, unpatched llama.cpp."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from tiny_gguf import write_tiny
from upstream_models import UpstreamModel, architecture_names, source, upstream_models

from yarn_gguf import RopeScaling, RopeScalingError, extend, scaling_from_gguf
from yarn_gguf.rope.architectures import ARCHITECTURES, Architecture, architecture

MODELS = {model.name: model for model in upstream_models()}
READS_KEY = "LLM_KV_ROPE_SCALING_YARN_"
WITHOUT_CLASS = {"gptj", "(unknown)"}  # names of llama-arch.cpp for which llama.cpp loads no model


def facts_of(model: UpstreamModel) -> Architecture:
    """Read the facts off the C++ text."""
    log_multiplier = f"{READS_KEY}LOG_MUL" in model.load_hparams
    return Architecture(
        has_rope=model.has_rope_type and rotates(model),
        freq_factors=treatment_of(model, "LLM_TENSOR_ROPE_FREQS"),
        longrope_factors=treatment_of(model, "LLM_TENSOR_ROPE_FACTORS_LONG"),
        log_multiplier_scale=log_multiplier
        * (10.0 if "rope_yarn_log_mul /= 0.1f" in model.load_hparams else 1.0),
        log_multiplier_is_mscale=model.enum in enums_whose_mscale_is_the_multiplier(),
        beta_fast=beta_fast_of(model),
        yarn_attn_factor_is_operand=f"{READS_KEY}ATTN_FACTOR, hparams.yarn_attn_factor" in model.load_hparams,
        reads_betas=all(f"{READS_KEY}{name}" in model.load_hparams for name in ("BETA_FAST", "BETA_SLOW")),
        reads_ext_factor=f"{READS_KEY}EXT_FACTOR" in model.load_hparams,
        scales_logits="attn_factor_org" in model.graph,
        windows_get_attn_factor="get_rope_freq_scale(" in model.graph and not scales_windows(model),
        windows_get_base=re.search(r"freq_base, 1\.0,\s*0\.0, 1\.0,", model.graph) is not None,
    )


def rotates(model: UpstreamModel) -> bool:
    """Return whether the graph has a rope op. Several architectures share BERT's; it has one for some."""
    only_for = re.search(r"if \((model\.arch == [^{]*)\) \{\s*Qcur = ggml_rope_ext", model.graph)
    return "ggml_rope" in model.graph and (only_for is None or is_named(model, only_for[1]))


def is_named(model: UpstreamModel, text: str) -> bool:
    return model.enum in re.findall(r"LLM_ARCH_\w+", text)


def treatment_of(model: UpstreamModel, tensor: str) -> str:
    if tensor not in model.load_tensors:  # llama.cpp refuses tensors that no loader asks for
        return "refuses"
    return "uses" if re.search(r"get_rope_factors\(|\.rope_freqs\b", model.graph) else "ignores"


def enums_whose_mscale_is_the_multiplier() -> list[str]:
    return re.findall(r"model\.arch == (LLM_ARCH_\w+) && mscale_all_dims", source("llama-context.cpp"))


def beta_fast_of(model: UpstreamModel) -> float:
    pattern = r"yarn_beta_fast += ([\d.]+)f;"
    found = re.search(pattern, model.load_hparams) or re.search(pattern, source("llama-hparams.h"))
    assert found is not None
    return float(found[1])


def scales_windows(model: UpstreamModel) -> bool:
    """Return whether the loader scales layers with a sliding window by the file's factor. Default: 1."""
    assert "rope_freq_scale_train_swa = 1.0f;" in source("llama-hparams.h")
    return "rope_freq_scale_train_swa = hparams.rope_freq_scale_train;" in model.load_hparams


def test_every_architecture_of_the_tree_is_read() -> None:
    assert len(MODELS) > 140
    assert architecture_names() - MODELS.keys() == WITHOUT_CLASS


def test_every_row_is_an_architecture_of_the_tree() -> None:
    assert ARCHITECTURES.keys() <= architecture_names()


def test_rows_are_in_order_and_say_something() -> None:
    assert list(ARCHITECTURES) == sorted(ARCHITECTURES)
    assert Architecture() not in ARCHITECTURES.values()


@pytest.mark.parametrize("fact", [each.name for each in fields(Architecture)])
def test_the_table_says_what_the_sources_say(fact: str) -> None:
    """The other facts mean nothing for an architecture without rotary embedding."""
    found = {name: facts_of(model) for name, model in MODELS.items()}
    wrong = {
        name: f"{getattr(architecture(name), fact)!r} in the table, {getattr(expected, fact)!r} in llama.cpp"
        for name, expected in found.items()
        if (fact == "has_rope" or expected.has_rope)
        and getattr(architecture(name), fact) != getattr(expected, fact)
    }
    assert wrong == {}


def test_gptj_has_no_class_and_no_rope_type() -> None:
    assert "case LLM_ARCH_GPTJ:" in source("llama-model.cpp").partition("return LLAMA_ROPE_TYPE_NONE;")[0]
    assert not architecture("gptj").has_rope


# ---- rows that once were missing -------------------------------------------------------------


def test_mistral_4_s_log_multiplier_is_read_as_deepseek_v3_2_s_is(tmp_path: Path) -> None:
    """It has the loader of DeepSeek-V2. But llama-context.cpp assumes an mscale of 1, as for V3.2."""
    keys = {"type": "yarn", "factor": 40.0, "yarn_log_multiplier": 0.0707}
    stored = {f"rope__scaling__{name}": value for name, value in keys.items()}
    found = [
        scaling_from_gguf(write_tiny(tmp_path / arch, arch, **stored)) for arch in ("mistral4", "deepseek32")
    ]
    assert found[0] == found[1]
    assert (found[0].mscale, found[0].mscale_all_dim) == pytest.approx((1.0, 0.707))
    with pytest.raises(RopeScalingError, match="yarn_log_multiplier ties this model's attention"):
        extend(tmp_path / "mistral4", RopeScaling("yarn", 4.0))


@pytest.mark.parametrize("arch", ["glm5-next", "kimi-k3"])
def test_an_architecture_without_rope_cannot_be_extended(tmp_path: Path, arch: str) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", arch)
    with pytest.raises(RopeScalingError, match=f"{arch} models have no rotary embedding to scale"):
        extend(path, RopeScaling("yarn", 4.0))
