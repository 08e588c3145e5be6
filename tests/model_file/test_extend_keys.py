"""The keys that extend writes are complete, and are read back as the same scaling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rope_keys import PADDING_KEYS, f32, rope_keys
from tiny_gguf import contents, write_tiny

from yarn_gguf.errors import RopeScalingError
from yarn_gguf.gguf.edit import change_keys
from yarn_gguf.gguf.header import ValueType, key_value
from yarn_gguf.model_file.extend import extend
from yarn_gguf.rope.formulas import ntk_base
from yarn_gguf.rope.read import read_model
from yarn_gguf.rope.scaling import METHODS, RopeScaling


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
    assert ({key: value for key, value in keys.items() if key not in PADDING_KEYS}, tensors) == before


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
