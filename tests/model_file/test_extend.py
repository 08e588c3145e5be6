"""Extending a GGUF file: the keys, what stays as it was, and what a crash leaves behind."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from libraries import run_cli_on_a_full_disk
from tiny_gguf import contents, write_tiny

from yarn_gguf.errors import GGUFError, RopeScalingError
from yarn_gguf.gguf import edit as gguf_edit
from yarn_gguf.gguf.edit import change_keys
from yarn_gguf.gguf.header import ValueType, key_value, read_header
from yarn_gguf.model_file.extend import Extension, extend
from yarn_gguf.rope import gguf_write as gguf_scaling
from yarn_gguf.rope.formulas import ntk_base
from yarn_gguf.rope.model import RotaryEmbedding
from yarn_gguf.rope.read import read_model
from yarn_gguf.rope.scaling import METHODS, RopeScaling

OURS = ("yarn_gguf.spare", "yarn_gguf.pad")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf")


def rope_keys(path: Path, arch: str = "llama") -> dict[str, object]:
    """The keys that differ from those of a fresh tiny file, without their prefix, and without padding."""
    keys = contents(path)[0]
    prefix = f"{arch}."
    chosen = (f"{prefix}rope", f"{prefix}context_length", "yarn_gguf.")
    return {
        key.removeprefix(prefix): value
        for key, value in keys.items()
        if key.startswith(chosen) and key not in OURS
    }


def scaling_keys(keys: dict[str, object]) -> dict[str, object]:
    return {f"rope__scaling__{key}": value for key, value in keys.items()}


def f32(value: float) -> float:
    return float(np.float32(value))


# ---- the keys --------------------------------------------------------------------------------


def test_yarn_writes_the_complete_set_of_keys(tiny: Path) -> None:
    extend(tiny, RopeScaling("yarn", 4.0))
    assert rope_keys(tiny) == {
        "context_length": 32768,
        "rope.freq_base": 100000.0,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 8192,
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "rope.scaling.yarn_attn_factor": f32(1.1386294361119891),  # 0.1 ln 4 + 1
        "rope.scaling.attn_factor": 1.0,
    }


def test_by_parts_is_yarn_without_its_temperature(tiny: Path) -> None:
    extend(tiny, RopeScaling("by-parts", 4.0))
    keys = rope_keys(tiny)
    assert keys["rope.scaling.type"] == "yarn"
    assert keys["rope.scaling.yarn_attn_factor"] == 1.0
    assert keys["rope.scaling.attn_factor"] == f32(1 / 1.1386294361119891)


def test_linear_writes_type_and_factor(tiny: Path) -> None:
    extend(tiny, RopeScaling("linear", 2.0))
    assert rope_keys(tiny) == {
        "context_length": 16384,
        "rope.freq_base": 100000.0,
        "rope.scaling.type": "linear",
        "rope.scaling.original_context_length": 8192,
        "rope.scaling.factor": 2.0,
    }


def test_ntk_writes_a_new_base_and_keeps_the_old(tiny: Path) -> None:
    extend(tiny, RopeScaling("ntk", 4.0))
    assert rope_keys(tiny) == {
        "context_length": 32768,
        "rope.freq_base": f32(100000 * 4 ** (64 / 62)),
        "rope.scaling.type": "none",
        "rope.scaling.original_context_length": 8192,
        "yarn_gguf.original_freq_base": 100000.0,
        "yarn_gguf.ntk_factor": 4.0,
    }


def test_grok_gets_ggml_s_operand_under_the_name_of_the_temperature(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "grok.gguf", "grok")
    done = extend(path, RopeScaling("yarn", 4.0, attention_factor=2.0))
    assert rope_keys(path, "grok")["rope.scaling.yarn_attn_factor"] == f32(2 / 1.1386294361119891)
    assert done.scaling.temperature() == pytest.approx(2, rel=1e-6)


def test_none_restores_base_and_context(tiny: Path) -> None:
    before = contents(tiny)
    extend(tiny, RopeScaling("ntk", 4.0))
    extend(tiny, RopeScaling("none"))
    keys, tensors = contents(tiny)
    assert keys.pop("llama.rope.scaling.type") == "none"
    assert ({key: value for key, value in keys.items() if key not in OURS}, tensors) == before


def test_an_extended_file_is_extended_from_its_original_context(tiny: Path) -> None:
    extend(tiny, RopeScaling("ntk", 4.0))
    extend(tiny, RopeScaling("yarn", 4.0))
    assert extend(tiny, RopeScaling("yarn", 2.0)).context_length == 16384
    again = extend(tiny, RopeScaling("ntk", 8.0))
    assert again.scaling.original_max_position_embeddings == 8192
    assert rope_keys(tiny)["rope.freq_base"] == f32(ntk_base(100000.0, 8.0, 64))


def test_an_original_context_that_is_given_wins(tiny: Path) -> None:
    assert extend(tiny, RopeScaling("yarn", 4.0), original_context=2048).context_length == 8192
    assert read_model(tiny).original_context == 2048


def test_stale_keys_are_removed(tmp_path: Path) -> None:
    stale = {"rope__scale_linear": 8.0, "rope__scaling__yarn_ext_factor": 0.0}
    path = write_tiny(tmp_path / "tiny.gguf", **stale)
    extend(path, RopeScaling("yarn", 2.0), original_context=1024)
    assert not {"rope.scale_linear", "rope.scaling.yarn_ext_factor"} & set(rope_keys(path))


scalings = st.builds(
    RopeScaling,
    method=st.sampled_from(METHODS),
    factor=st.floats(1, 1000),
    original_max_position_embeddings=st.integers(32, 100_000),  # below 25 the ramp's bounds cross
    beta_fast=st.floats(8, 64),
    beta_slow=st.floats(0.5, 4),
    ramp=st.sampled_from(["index", "rotations"]),
    truncate=st.booleans(),
    attention_factor=st.none() | st.floats(0.1, 10),
    low_freq_factor=st.floats(0.5, 2),
    high_freq_factor=st.floats(3, 8),
    mscale=st.none() | st.floats(0.1, 2),
    mscale_all_dim=st.none() | st.floats(0.1, 2),
    inv_freq=st.tuples(*[st.floats(1e-6, 1)] * 32),
    short_factor=st.tuples(*[st.floats(1, 4)] * 32),
    long_factor=st.tuples(*[st.floats(1, 64)] * 32),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scaling=scalings)
def test_what_is_written_is_what_is_read(tmp_path: Path, scaling: RopeScaling) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")
    done = extend(path, scaling)
    model = read_model(path)
    assert model.scaling == done.scaling
    for length in (1, None):
        asked = scaling.frequencies(64, 100000.0, seq_len=length)
        got = model.scaling.frequencies(64, model.rope_theta, seq_len=length)
        np.testing.assert_allclose(got.inv_freq, asked.inv_freq, rtol=1e-5)
        assert got.attention_factor == pytest.approx(asked.attention_factor, rel=1e-6)
    assert extend(path, model.scaling).how == "unchanged"


@pytest.mark.parametrize("method", ["linear", "by-parts", "yarn", "ntk"])
@pytest.mark.parametrize("factor", [1.0, 2.0, 4.1, 31.7])
def test_the_default_temperature_is_read_back_as_none_given(tiny: Path, method: str, factor: float) -> None:
    scaling = extend(tiny, RopeScaling(method, factor)).scaling
    assert scaling.attention_factor is None
    assert scaling.factor == f32(factor)
    assert scaling.method == ("yarn" if (method, factor) == ("by-parts", 1.0) else method)


def test_frequencies_that_disagree_with_the_other_keys_are_refused(tiny: Path) -> None:
    extend(tiny, RopeScaling("yarn", 4.0, ramp="rotations"))
    model = read_model(tiny)
    key = model.key("rope.scaling.factor")
    change_keys(model.header, [key_value(key, ValueType.FLOAT32, 8.0)], [key])
    with pytest.raises(RopeScalingError, match="inv_freq and the other keys disagree"):
        read_model(tiny).scaling  # noqa: B018


# ---- files of other makers -------------------------------------------------------------------


def test_a_file_without_scaling_keys_is_unscaled(tiny: Path) -> None:
    model = read_model(tiny)
    assert model.scaling == RopeScaling()
    assert (model.dim, model.rope_theta, model.original_context, model.usable_context) == (
        64,
        1e5,
        8192,
        8192,
    )


@pytest.mark.parametrize(
    ("keys", "dim"),
    [
        ({}, 64),
        ({"attention__key_length": 128}, 128),
        ({"attention__key_length": 128, "rope__dimension_count": 32}, 32),
        ({"attention__head_count": [0, 9, 4]}, 64),
    ],
)
def test_rotary_dimensions_are_found_as_llama_cpp_finds_them(tmp_path: Path, keys: dict, dim: int) -> None:
    assert read_model(write_tiny(tmp_path / "tiny.gguf", **keys)).dim == dim


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"factor": 4.0}, RopeScaling("linear", 4.0)),
        ({"type": "none", "factor": 4.0}, RopeScaling()),
        ({"type": "linear", "factor": 0.0}, RopeScaling("linear", 1.0)),
        ({"type": "yarn", "factor": 4.0}, RopeScaling("yarn", 4.0, 8192)),
        ({"type": "yarn", "factor": 4.0, "yarn_ext_factor": -1.0}, RopeScaling("yarn", 4.0, 8192)),
        ({"type": "yarn", "factor": 4.0, "yarn_ext_factor": 0.0}, RopeScaling("linear", 4.0)),
        ({"type": "linear", "factor": 1.0}, RopeScaling("linear", 1.0)),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 2048, "yarn_attn_factor": 1.5},
            RopeScaling("yarn", 4.0, 2048, attention_factor=1.5),
        ),
        (
            {"type": "yarn", "factor": 4.0, "yarn_attn_factor": 1.5, "attn_factor": 7.0},
            RopeScaling("yarn", 4.0, 8192, attention_factor=1.5),
        ),
    ],
)
def test_keys_of_other_makers_are_understood(tmp_path: Path, keys: dict, expected: RopeScaling) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", **scaling_keys(keys))
    assert read_model(path).scaling == expected


def test_the_old_name_of_the_linear_factor_is_understood(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__scale_linear=4.0)
    assert read_model(path).scaling == RopeScaling("linear", 4.0)
    path = write_tiny(tmp_path / "both.gguf", rope__scale_linear=4.0, rope__scaling__factor=2.0)
    assert read_model(path).scaling == RopeScaling("linear", 2.0)


def test_grok_s_ramp_begins_at_8_rotations_by_default(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "grok.gguf", "grok", **scaling_keys({"type": "yarn", "factor": 4.0}))
    assert read_model(path).scaling == RopeScaling("yarn", 4.0, 8192, beta_fast=8.0)


def test_a_type_that_came_after_ntk_counts(tiny: Path) -> None:
    extend(tiny, RopeScaling("ntk", 4.0))
    key = "llama.rope.scaling.type"
    change_keys(read_header(tiny), [key_value(key, ValueType.STRING, "linear")], [key])
    assert read_model(tiny).scaling.method == "linear"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"type": "yarn", "factor": 0.0}, "factor must be a number >= 1, got 0.0"),
        ({"type": "yarn", "factor": 4.0, "yarn_ext_factor": 0.5}, "yarn_ext_factor 0.5 has no meaning"),
        ({"type": "yarn", "factor": 4.0, "inv_freq": [1.0] * 31}, "inv_freq and the other keys disagree"),
    ],
)
def test_a_scaling_that_makes_no_sense_is_refused_when_it_is_asked_for(
    tmp_path: Path, keys: dict, message: str
) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", **scaling_keys(keys))
    with pytest.raises(RopeScalingError, match=message) as caught:
        read_model(path).scaling  # noqa: B018
    assert str(caught.value).startswith(f"{path}: ")


def test_attn_factor_alone_multiplies_the_temperature(tmp_path: Path) -> None:
    keys = {"type": "yarn", "factor": 4.0, "attn_factor": 0.5}
    path = write_tiny(tmp_path / "tiny.gguf", **scaling_keys(keys))
    assert read_model(path).scaling.temperature() == pytest.approx(0.5 * 1.1386294361119891)


def test_deepseek_s_log_multiplier_is_mscale_all_dim(tmp_path: Path) -> None:
    keys = {"rope__scaling__type": "yarn", "rope__scaling__factor": 40.0}
    path = write_tiny(
        tmp_path / "v2.gguf", "deepseek2", rope__scaling__yarn_log_multiplier=f32(0.0707), **keys
    )
    assert read_model(path).scaling.mscale_all_dim == pytest.approx(0.707)
    assert read_model(path).scaling.temperature() == 1


@pytest.mark.parametrize(
    ("arch", "stored", "mscale", "temperature"),
    [
        ("deepseek2", 0.0707, 0.707, 1.0),
        # (0.1 ln 40 + 1) / (0.0707 ln 40 + 1): llama.cpp takes mscale for 1 there
        ("deepseek32", 0.0707, 1.0, 1.3688879 / 1.2608038),
        ("mistral3", 0.707, 1.0, 1.3688879 / 1.2608038),
    ],
)
def test_a_log_multiplier_is_taken_as_each_loader_takes_it(
    tmp_path: Path, arch: str, stored: float, mscale: float, temperature: float
) -> None:
    keys = scaling_keys({"type": "yarn", "factor": 40.0, "yarn_log_multiplier": f32(stored)})
    scaling = read_model(write_tiny(tmp_path / "v2.gguf", arch, **keys)).scaling
    assert (scaling.mscale, scaling.mscale_all_dim) == pytest.approx((mscale, 0.707))
    assert scaling.temperature() == pytest.approx(temperature, rel=1e-6)


@pytest.mark.parametrize(
    ("arch", "own"), [("llama", 1.3688879), ("deepseek2", 1.0), ("mistral3", 1.3688879 / 1.2608038)]
)
def test_attn_factor_brings_an_unpatched_library_s_own_temperature_to_the_whole(
    arch: str, own: float
) -> None:
    """own: what it makes of factor 40 and the converter's log multiplier (llama-context.cpp, get_mscale)."""
    scaling = RopeScaling("yarn", 40.0, 1024, mscale=1.0, mscale_all_dim=0.707)
    entries = gguf_scaling.scaling_keys(RotaryEmbedding(arch, 64, 1e5), scaling)
    keys, whole = {entry.key: entry.value for entry in entries}, 1.3688879 / 1.2608038
    assert keys[f"{arch}.rope.scaling.yarn_attn_factor"] == pytest.approx(whole, rel=1e-6)
    assert keys[f"{arch}.rope.scaling.attn_factor"] == pytest.approx(whole / own, rel=1e-6)


def test_where_the_temperature_comes_from_is_kept(tiny: Path) -> None:
    extend(tiny, RopeScaling("yarn", 4.0, mscale=0.75, mscale_all_dim=0.5))
    assert read_model(tiny).scaling == RopeScaling("yarn", 4.0, 8192, mscale=0.75, mscale_all_dim=0.5)
    extend(tiny, RopeScaling("yarn", 4.0))
    assert read_model(tiny).scaling == RopeScaling("yarn", 4.0, 8192)


def test_finetuned_goes_with_its_scaling(tiny: Path) -> None:
    extend(tiny, RopeScaling("yarn", 4.0), finetuned=True)
    assert rope_keys(tiny)["rope.scaling.finetuned"] is True
    extend(tiny, RopeScaling("yarn", 2.0))
    assert "rope.scaling.finetuned" not in rope_keys(tiny)


def test_phi_3_s_factors_are_read_from_their_tensors(tmp_path: Path) -> None:
    long, short = np.linspace(1, 32, 32, dtype=np.float32), np.linspace(1, 2, 32, dtype=np.float32)
    path = write_tiny(
        tmp_path / "phi3.gguf",
        "phi3",
        context_length=131072,
        rope__scaling__original_context_length=4096,
        rope__scaling__attn_factor=f32((1 + np.log(32) / np.log(4096)) ** 0.5),
        tensors={"rope_factors_long.weight": long, "rope_factors_short.weight": short},
    )
    expected = RopeScaling(
        "longrope", 32.0, 4096, short_factor=tuple(short.tolist()), long_factor=tuple(long.tolist())
    )
    assert read_model(path).scaling == expected
    assert read_model(path).usable_context == 131072


# ---- refusals --------------------------------------------------------------------------------


def assert_refused(
    path: Path, scaling: RopeScaling, message: str, kind: type = RopeScalingError, **kwargs
) -> None:
    """extend raises `kind`, and neither the file nor its folder changes."""
    before = path.read_bytes(), path.stat().st_mtime_ns, sorted(path.parent.iterdir())
    with pytest.raises(kind, match=message):
        extend(path, scaling, **kwargs)
    assert (path.read_bytes(), path.stat().st_mtime_ns, sorted(path.parent.iterdir())) == before


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (RopeScaling("explicit", 2.0, inv_freq=(1.0,)), "inv_freq must be 32 numbers"),
        (
            RopeScaling("longrope", 8.0, short_factor=(1.0,), long_factor=(1.0,) * 32),
            "short_factor must be 32",
        ),
        (
            RopeScaling("longrope", 8.0, short_factor=(1.0,) * 32, long_factor=(1.0,)),
            "long_factor must be 32",
        ),
        (RopeScaling("yarn", 1e6), "beyond 32 bits"),
        (RopeScaling("ntk", 1e38, 1), "beyond 32 bits"),
    ],
)
def test_what_gguf_cannot_say_is_refused(tiny: Path, scaling: RopeScaling, message: str) -> None:
    assert_refused(tiny, scaling, message)


@pytest.mark.parametrize("context", [0, -1])
def test_an_original_context_that_is_none_is_refused(tiny: Path, context: int) -> None:
    assert_refused(tiny, RopeScaling("yarn", 4.0), "whole number of tokens > 0", original_context=context)


def test_a_base_beyond_float32_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__freq_base=1e30)
    assert_refused(path, RopeScaling("ntk", 1e9, 1), r"takes llama\.rope\.freq_base beyond float32")


def test_contradicting_original_contexts_are_refused(tiny: Path) -> None:
    assert_refused(tiny, RopeScaling("yarn", 4.0, 4096), "4096", original_context=2048)


@pytest.mark.parametrize("arch", ["mamba", "rwkv7", "bert", "gpt2"])
def test_a_model_without_rope_is_refused(tmp_path: Path, arch: str) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", arch)
    assert_refused(path, RopeScaling("yarn", 4.0), f"{arch} models have no rotary embedding")


@pytest.mark.parametrize("keys", [{"rope__dimension_count": 0}, {"attention__head_count": None}])
def test_a_model_without_rotary_dimensions_is_refused(tmp_path: Path, keys: dict) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", **keys)
    assert_refused(path, RopeScaling("yarn", 4.0), "no rotary embedding")


@pytest.mark.parametrize("name", ["rope_freqs.weight", "rope_factors_long.weight"])
def test_scaling_baked_into_a_tensor_is_refused(tmp_path: Path, name: str) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", tensors={name: np.ones(32, np.float32)})
    assert_refused(path, RopeScaling("yarn", 4.0), f"the tensor {name}")


def test_scaling_tied_to_a_log_multiplier_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "deepseek2", rope__scaling__yarn_log_multiplier=0.1)
    assert_refused(path, RopeScaling("yarn", 4.0), "yarn_log_multiplier")


def test_scaling_by_alpha_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__scaling__alpha=1000.0)
    assert_refused(path, RopeScaling("yarn", 4.0), r"llama\.rope\.scaling\.alpha = 1000\.0 already scales")


def test_llama_3_s_context_is_the_given_one_else_the_file_s_else_the_factor_s(tmp_path: Path) -> None:
    scaling = RopeScaling("llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
    path = write_tiny(tmp_path / "tiny.gguf", context_length=8192)
    assert extend(path, scaling).context_length == 65536
    assert extend(path, scaling, context_length=131072).context_length == 131072
    assert extend(path, scaling).context_length == 131072


def test_longrope_s_tensors_beside_a_factor_are_refused(tmp_path: Path) -> None:
    """The library would scale twice."""
    tensors = {f"rope_factors_{name}.weight": np.ones(32, np.float32) for name in ("long", "short")}
    keys = scaling_keys({"factor": 4.0, "original_context_length": 2048})
    model = read_model(write_tiny(tmp_path / "tiny.gguf", "phi3", tensors=tensors, **keys))
    with pytest.raises(RopeScalingError, match=r"factor 4\.0 beside LongRoPE's lists scales a second time"):
        model.scaling  # noqa: B018


@pytest.mark.parametrize("arch", ["deepseek2", "deepseek32", "mistral3"])
def test_an_mscale_that_changes_the_attention_too_is_refused(tmp_path: Path, arch: str) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", arch)
    assert_refused(path, RopeScaling("yarn", 4.0, mscale_all_dim=0.7), "mscale_all_dim = 0.7 changes the")
    assert extend(path, RopeScaling("yarn", 4.0)).how == "copied"


def test_a_linear_factor_of_1_leaves_no_question_of_its_origin(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__scaling__type="linear", rope__scaling__factor=1.0)
    assert extend(path, RopeScaling("yarn", 4.0)).context_length == 32768


def test_linear_scaling_of_unknown_origin_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__scaling__type="linear", rope__scaling__factor=8.0)
    assert_refused(path, RopeScaling("yarn", 4.0), "give --original-context")
    assert extend(path, RopeScaling("yarn", 4.0), original_context=1024).context_length == 4096


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"context_length": None}, "context_length is missing or 0"),
        ({"context_length": 0}, "context_length is missing or 0"),
        ({"context_length": 8192.0}, "context_length is of type FLOAT32, and llama.cpp reads UINT32"),
        ({"rope__dimension_count": 31}, "dimension_count = 31"),
        ({"rope__dimension_count": 2**31}, "dimension_count = 2147483648"),
    ],
)
def test_unusable_keys_are_named(tmp_path: Path, keys: dict, message: str) -> None:
    assert_refused(write_tiny(tmp_path / "tiny.gguf", **keys), RopeScaling("yarn", 4.0), message, GGUFError)


@pytest.mark.parametrize("base", [0.0, 1.0, float("nan"), float("inf")])
def test_an_unusable_base_is_refused(tmp_path: Path, base: float) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__freq_base=base)
    assert_refused(path, RopeScaling("yarn", 4.0), r"llama\.rope\.freq_base")


def test_a_later_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m-00002-of-00003.gguf"
    write_split(path, 1)
    assert_refused(path, RopeScaling("yarn", 4.0), r"part 2 of 3 .*-00001-of-00003", GGUFError)


def write_split(path: Path, number: int) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {"context_length": 64, "embedding_length": 64, "attention.head_count": 1}.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def test_the_first_part_of_a_split_model_keeps_its_name(tmp_path: Path) -> None:
    path, output = tmp_path / "m-00001-of-00003.gguf", tmp_path / "out.gguf"
    write_split(path, 0)
    assert_refused(path, RopeScaling("yarn", 4.0), "part 1 of 3 of a split model", GGUFError, output=output)
    assert extend(path, RopeScaling("yarn", 4.0)).context_length == 256


def test_an_existing_output_is_refused_unless_forced(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    output.write_bytes(b"precious")
    assert_refused(tiny, RopeScaling("yarn", 4.0), "use --force", GGUFError, output=output)
    assert output.read_bytes() == b"precious"
    extend(tiny, RopeScaling("yarn", 4.0), output=output, force=True)
    assert rope_keys(output)["context_length"] == 32768


def test_the_input_as_output_is_refused(tiny: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(tiny)
    for output in (tiny, link):
        assert_refused(tiny, RopeScaling("yarn", 4.0), "use --in-place", GGUFError, output=output, force=True)


def test_a_broken_scaling_can_be_replaced(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__scaling__type="ntk", rope__scaling__factor=float("nan"))
    with pytest.raises(RopeScalingError, match=r"type 'ntk' .*\(keys llama\.rope\.scaling\.\*\).* extend"):
        _ = read_model(path).scaling
    assert extend(path, RopeScaling("yarn", 4.0)).context_length == 32768


# ---- what stays as it was --------------------------------------------------------------------


def assert_only_rope_keys_differ(old: Path, new: Path) -> None:
    (old_keys, old_tensors), (new_keys, new_tensors) = contents(old), contents(new)
    assert new_tensors == old_tensors
    changed = {key for key in old_keys | new_keys if old_keys.get(key) != new_keys.get(key)}
    assert {key for key in changed if not key.startswith(("llama.rope.", "llama.context_length"))} <= set(
        OURS
    )


@pytest.mark.parametrize("alignment", [None, 8, 64, 8192])
def test_all_else_is_read_by_gguf_as_before(tmp_path: Path, alignment: int | None) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", alignment=alignment)
    output = tmp_path / "out.gguf"
    extend(path, RopeScaling("yarn", 4.0), output=output)
    assert_only_rope_keys_differ(path, output)
    extend(output, RopeScaling("yarn", 2.0))
    assert_only_rope_keys_differ(path, output)
    assert read_header(output).data_offset % (alignment or 32) == 0


def test_unchanged_keys_are_copied_verbatim_and_in_order(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    extend(tiny, RopeScaling("yarn", 4.0), output=output)
    old, new = read_header(tiny).entries, read_header(output).entries
    touched = ("llama.rope.", "llama.context_length", *OURS)
    kept = [entry for entry in old.values() if not entry.key.startswith(touched)]
    assert [entry for entry in new.values() if not entry.key.startswith(touched)] == kept


def test_trailing_bytes_are_kept(tiny: Path, tmp_path: Path) -> None:
    tiny.write_bytes(tiny.read_bytes() + b"trailing")
    extend(tiny, RopeScaling("yarn", 4.0), output=tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes().endswith(b"trailing")


def test_a_file_without_tensors_can_be_extended(tmp_path: Path) -> None:
    path = tmp_path / "vocab.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {"context_length": 64, "embedding_length": 64, "attention.head_count": 1}.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert extend(path, RopeScaling("yarn", 4.0)).context_length == 256
    assert extend(path, RopeScaling("yarn", 2.0)).how == "in place"


def test_a_real_file_keeps_everything_else(smollm2_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    extend(smollm2_path, RopeScaling("yarn", 4.0), output=output)
    assert_only_rope_keys_differ(smollm2_path, output)
    moved = read_header(output).data_offset - read_header(smollm2_path).data_offset
    assert moved % gguf_edit.PAGE == 0


# ---- in place --------------------------------------------------------------------------------


def test_the_second_change_is_one_write_within_a_page(tiny: Path) -> None:
    assert extend(tiny, RopeScaling("yarn", 4.0)).how == "copied"
    inode, before = tiny.stat().st_ino, tiny.read_bytes()
    done = extend(tiny, RopeScaling("yarn", 2.0))
    after = tiny.read_bytes()
    differing = [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    assert done.how == "in place"
    assert tiny.stat().st_ino == inode
    assert differing[0] // gguf_edit.PAGE == differing[-1] // gguf_edit.PAGE
    assert done.bytes_written == differing[-1] - differing[0] + 1


@pytest.mark.parametrize("name_length", range(0, 8192, 331))
def test_the_changed_keys_never_straddle_pages(tmp_path: Path, name_length: int) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", filler="x" * name_length)
    extend(path, RopeScaling("yarn", 4.0))
    assert extend(path, RopeScaling("yarn", 2.0)).how == "in place"


def test_a_change_in_more_than_one_page_is_a_copy(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", filler="x" * 5000)
    extend(path, RopeScaling("yarn", 4.0))
    done = extend(path, RopeScaling("ntk", 4.0))  # other keys: their number stands in the first page
    assert done.how == "copied"
    assert done.bytes_written == path.stat().st_size


def test_room_is_left_for_later_changes(tiny: Path) -> None:
    extend(tiny, RopeScaling("yarn", 4.0))
    assert len(read_header(tiny).entries["yarn_gguf.spare"].value) >= 256


def test_nothing_is_written_where_nothing_changes(tiny: Path) -> None:
    extend(tiny, RopeScaling("yarn", 4.0))
    before = tiny.stat().st_mtime_ns
    assert extend(tiny, RopeScaling("yarn", 4.0)).how == "unchanged"
    assert tiny.stat().st_mtime_ns == before


def test_a_file_that_another_changed_meanwhile_is_left_alone(tiny: Path) -> None:
    extend(tiny, RopeScaling("yarn", 4.0))
    stale = read_header(tiny)
    extend(tiny, RopeScaling("yarn", 2.0))
    before = tiny.read_bytes()
    with pytest.raises(GGUFError, match="changed since it was read: try again"):
        gguf_edit.change_keys(stale, [], ["llama.rope.scaling.type"])
    assert tiny.read_bytes() == before


def test_a_symbolic_link_is_followed(tiny: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(tiny.name)
    for factor in (4.0, 2.0):
        extend(link, RopeScaling("yarn", factor))
        assert link.is_symlink()
        assert read_model(tiny).scaling.factor == factor


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_the_mode_is_kept(tiny: Path, mode: int) -> None:
    tiny.chmod(mode)
    extend(tiny, RopeScaling("yarn", 4.0))
    assert tiny.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("failure", [OSError(errno.EXDEV, "other device"), AttributeError("copy_file_range")])
def test_a_system_that_cannot_copy_ranges_copies_bytes(tiny: Path, monkeypatch, failure: Exception) -> None:
    old = contents(tiny)[1]

    def cannot(*args: object) -> int:
        raise failure

    monkeypatch.setattr(os, "copy_file_range", cannot)
    extend(tiny, RopeScaling("yarn", 4.0))
    assert contents(tiny)[1] == old


# ---- crashes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("call", ["copy_file_range", "fsync"])
def test_an_interrupted_copy_leaves_the_old_file_alone(tiny: Path, monkeypatch, call: str, failure) -> None:
    before = tiny.read_bytes()

    def fail(*args: object) -> int:
        raise failure

    monkeypatch.setattr(os, call, fail)
    with pytest.raises((KeyboardInterrupt, GGUFError)) as caught:
        extend(tiny, RopeScaling("yarn", 4.0))
    assert tiny.read_bytes() == before
    assert list(tiny.parent.iterdir()) == [tiny]
    if caught.type is GGUFError:
        assert "No space left on device" in str(caught.value)
        assert "bytes needed" in str(caught.value)


def test_a_full_disk_is_reported_and_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", data_kib=1024)
    before = path.read_bytes()
    done = run_cli_on_a_full_disk("extend", path, "--in-place", "--factor", "4")
    assert done.returncode == 1
    assert "cannot be written (File too large); nothing was changed" in done.stderr
    assert done.stderr.count("\n") == 1
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_is_reported(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "missing" / "out.gguf"
    assert_refused(tiny, RopeScaling("yarn", 4.0), "No such file or directory", GGUFError, output=output)


KILLS = 10  # on each of the two paths


def test_a_kill_leaves_the_old_file_or_the_new_one(smollm2_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    known = _known_states(smollm2_path, path)
    shutil.copyfile(smollm2_path, path)
    duration = _seconds_to_extend(path)
    moments = random.Random(0)
    outcomes = []
    for _ in range(KILLS):  # while the file is copied
        shutil.copyfile(smollm2_path, path)
        _kill_after(path, "once", moments.uniform(0, 1.2 * duration))
        outcomes.append(known[_digest(path)])
        for leftover in tmp_path.glob(".*.tmp"):
            leftover.unlink()
    assert set(outcomes) <= {"raw", "x4"}
    extend(path, RopeScaling("yarn", 4.0))
    for _ in range(KILLS):  # while its header is changed again and again
        _kill_after(path, "repeat", moments.uniform(0, 0.5))
        assert known[_digest(path)] in ("x2", "x4")
        read_header(path)
    assert extend(path, RopeScaling("yarn", 8.0)).how == "in place"


def _known_states(raw: Path, path: Path) -> dict[str, str]:
    """The hash of each file that may be found, each of which GGUFReader reads."""
    shutil.copyfile(raw, path)
    known = {_digest(path): "raw"}
    for factor in (4.0, 2.0):
        extend(path, RopeScaling("yarn", factor))
        assert rope_keys(path)["context_length"] == 8192 * factor
        known[_digest(path)] = f"x{factor:g}"
    assert len(known) == 3
    return known


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _seconds_to_extend(path: Path) -> float:
    start = time.perf_counter()
    done: Extension = extend(path, RopeScaling("yarn", 4.0))
    assert done.how == "copied"
    return time.perf_counter() - start


def _kill_after(path: Path, mode: str, seconds: float) -> None:
    """Kill a process that extends `path`, `seconds` after it began to."""
    script = Path(__file__).with_name("extend_until_killed.py")
    with subprocess.Popen([sys.executable, script, path, mode], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        process.kill()
