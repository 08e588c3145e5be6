"""config.json -> RopeScaling, against transformers' own frequencies for the same config."""

import json

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from yarn_gguf import DynamicScaling, RopeScaling, RopeScalingError, scaling_from_hf
from yarn_gguf.convert.arch import ARCHITECTURES
from yarn_gguf.rope.hf_parameters import rope_parameters
from yarn_gguf.rope.hf_rope import hf_rope, read_hf_rope

BASE = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 8192, "rope_theta": 500000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LISTS = {"short_factor": [1.0 + i / 64 for i in range(32)], "long_factor": [1.0 + i for i in range(32)]}

CONFIGS = {
    "default": {},
    "linear, by its old name": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "yarn": {"rope_scaling": YARN},
    "yarn, in rope_parameters": {"rope_parameters": {**YARN, "rope_theta": 1e6}},
    "yarn, betas": {"rope_scaling": {**YARN, "beta_fast": 16, "beta_slow": 2}},
    "yarn, betas of 0": {"rope_scaling": {**YARN, "beta_fast": 0, "beta_slow": 0}},
    "yarn, both names of its type": {"rope_scaling": {**YARN, "type": "linear"}},
    "yarn, partial in two places": {
        "rope_scaling": {**YARN, "partial_rotary_factor": 0.5},
        "partial_rotary_factor": 0.25,
    },
    "longrope, of less than its original context": {
        "rope_scaling": {"rope_type": "longrope", **LISTS},
        "original_max_position_embeddings": 16384,
    },
    "yarn, null betas": {"rope_scaling": {**YARN, "beta_fast": None, "beta_slow": None}},
    "yarn, temperature": {"rope_scaling": {**YARN, "attention_factor": 1.25}},
    "yarn, vLLM's name of a multiplier": {"rope_scaling": {**YARN, "attn_factor": 0.878}},
    "yarn, of another ratio than that of the contexts": {"rope_scaling": {**YARN, "factor": 3.0}},
    "yarn, positions of several parts": {"rope_scaling": {**YARN, "mrope_section": [8, 12, 12]}},
    "yarn, mscale": {"rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0}},
    "yarn, mscale 0": {"rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0}},
    "yarn, untruncated": {"rope_scaling": {**YARN, "truncate": False}},
    "yarn, factor left out": {"rope_scaling": {**YARN, "factor": None}},
    "yarn, partial": {"rope_scaling": YARN, "partial_rotary_factor": 0.5},
    "yarn, head_dim": {"rope_scaling": YARN, "head_dim": 128},
    "yarn, without its original context": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "yarn, its original context outside": {
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6},
        "original_max_position_embeddings": 2048,
    },
    "yarn, with nothing but its name": {"rope_scaling": {"rope_type": "yarn", "factor": None}},
    "llama3, without its original context": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        }
    },
    "longrope, without its original context": {
        "rope_scaling": {"rope_type": "longrope", **LISTS, "factor": 4}
    },
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 2048,
        }
    },
    "longrope, as transformers 5 saves it": {
        "rope_parameters": {
            "rope_type": "longrope",
            **LISTS,
            "rope_theta": 1e4,
            "original_max_position_embeddings": 2048,
        },
        "original_max_position_embeddings": 2048,
    },
    "longrope, phi-3's way": {
        "rope_scaling": {"rope_type": "longrope", **LISTS},
        "original_max_position_embeddings": 2048,
    },
}


def theirs_of(config, kind=transformers.LlamaConfig):
    """Return transformers' config of a copy of `config`, since transformers changes its arguments."""
    return kind(**json.loads(json.dumps(config)))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_frequencies_and_temperature_are_transformers(config):
    config = {**BASE, **config}
    theirs = theirs_of(config)
    rope_type = theirs.rope_parameters["rope_type"]
    rope = hf_rope(config)
    got = rope.scaling.frequencies(rope.dim, rope.rope_theta, seq_len=8192)
    if rope_type == "default":
        dim, base = rope.dim, theirs.rope_parameters["rope_theta"]
        expected, temperature = base ** (-np.arange(0, dim, 2) / dim), 1.0
    else:
        tensor, temperature = ROPE_INIT_FUNCTIONS[rope_type](theirs, "cpu", seq_len=8192)
        expected = tensor.numpy()
    np.testing.assert_allclose(got.inv_freq, expected, rtol=2e-6)
    assert got.attention_factor == pytest.approx(temperature, rel=1e-9)


WITH_TEMPERATURE = ("by-parts", "yarn", "longrope")  # transformers has attention_factor for these

scalings = st.builds(
    RopeScaling,
    method=st.sampled_from(["none", "linear", "by-parts", "yarn", "llama3", "longrope"]),
    factor=st.floats(1, 1000),
    original_max_position_embeddings=st.integers(32, 100_000),  # below 25 the ramp's bounds cross
    beta_fast=st.floats(8, 64),
    beta_slow=st.floats(0.5, 4),
    truncate=st.booleans(),
    attention_factor=st.none() | st.floats(0.1, 10),
    mscale=st.none() | st.floats(0.1, 2),
    mscale_all_dim=st.none() | st.floats(0.1, 2),
    low_freq_factor=st.floats(0.5, 2),
    high_freq_factor=st.floats(3, 8),
    short_factor=st.tuples(*[st.floats(1, 4)] * 32),
    long_factor=st.tuples(*[st.floats(1, 64)] * 32),
)


@settings(deadline=None)
@given(scaling=scalings.filter(lambda s: s.attention_factor is None or s.method in WITH_TEMPERATURE))
def test_a_scaling_survives_the_way_to_a_config_and_back_exactly(scaling: RopeScaling):
    values = json.loads(json.dumps(rope_parameters(scaling, 1e4)))
    again = hf_rope({**BASE, "rope_parameters": values}).scaling
    for length in (1, None):
        asked, got = (each.frequencies(64, 1e4, seq_len=length) for each in (scaling, again))
        assert np.array_equal(asked.inv_freq, got.inv_freq)
        assert asked.attention_factor == got.attention_factor
    assert scaling_from_hf({**BASE, "rope_parameters": rope_parameters(again, 1e4)}) == again


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("yarn", 4.0, 2048, ramp="rotations"),
        RopeScaling("explicit", inv_freq=(1.0,)),
        RopeScaling("ntk", 4.0),
        RopeScaling("linear", 4.0, attention_factor=1.5),
    ],
    ids=["rotations", "explicit", "ntk", "temperature of linear"],
)
def test_a_scaling_that_a_config_cannot_express_is_refused(scaling):
    with pytest.raises(RopeScalingError, match="transformers has no"):
        rope_parameters(scaling, 1e4)


def test_layers_with_a_sliding_window_stay_unscaled():
    """Gemma 3 has a config of this shape."""
    parameters = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    rope = hf_rope({**BASE, "rope_parameters": parameters})
    assert rope.scaling == RopeScaling("linear", 8.0)
    assert (rope.rope_theta, rope.sliding_rope_theta) == (1e6, 1e4)


def test_of_both_sections_transformers_takes_rope_scaling():
    config = {**BASE, "rope_parameters": {"rope_type": "default"}, "rope_scaling": YARN}
    theirs = theirs_of(config).rope_parameters
    ours = hf_rope(config)
    assert theirs["rope_type"] == ours.scaling.method == "yarn"
    assert theirs["rope_theta"] == ours.rope_theta


BESIDE = {
    "a base": {"rope_theta": 1e6},
    "a part of a head": {"partial_rotary_factor": 0.5},
    "the same base": {"rope_theta": 10000.0},
    "the same part of a head": {"partial_rotary_factor": 1.0},
    "null": {"rope_theta": None},
}


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
@pytest.mark.parametrize("section", [YARN, {"type": "linear", "factor": 2.0}], ids=["yarn", "linear"])
def test_values_of_rope_parameters_that_rope_scaling_would_lose_are_refused(beside, section):
    """A file of transformers 5, with a model card's rope_scaling added. transformers loses the base."""
    own = {"rope_type": "default", **beside}
    sizes = {name: value for name, value in BASE.items() if name != "rope_theta"}
    config = {**sizes, "rope_parameters": own, "rope_scaling": section}
    theirs = theirs_of(config).rope_parameters
    (name, value) = next(iter(beside.items()))
    if value is None or theirs.get(name, 1.0) == value:
        assert hf_rope(config).rope_theta == theirs["rope_theta"]
        return
    with pytest.raises(RopeScalingError, match=rf"rope_parameters\.{name} is {value}, and is lost .*: move"):
        hf_rope(config)
    moved = hf_rope({**sizes, "rope_parameters": {**own, **section, "rope_type": section.get("rope_type")}})
    assert moved.rope_theta == beside.get("rope_theta", 10000.0)


def test_the_original_context_of_parameters_by_layer_type_may_be_missing():
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}
    plain = {"rope_type": "default", "rope_theta": 1e4}
    config = {**BASE, "rope_parameters": {"full_attention": yarn, "sliding_attention": plain}}
    types = {"layer_types": ["full_attention"] * 2, "num_hidden_layers": 2}
    theirs = theirs_of({**config, **types}, transformers.Qwen3Config).rope_parameters["full_attention"]
    ours = hf_rope(config).scaling.original_max_position_embeddings
    assert ours == theirs["original_max_position_embeddings"] == 8192


@pytest.mark.parametrize("layers", ["sliding_attention", "chunked_attention"])
def test_parameters_of_other_layers_alone_are_refused(layers):
    with pytest.raises(RopeScalingError, match=r"rope_parameters\.full_attention must be an object"):
        hf_rope({**BASE, "rope_parameters": {layers: YARN}})


@pytest.mark.parametrize("name", ["rope_type", "type"])
def test_scaled_layers_with_a_sliding_window_are_refused(name):
    sliding = {name: "linear", "factor": 4.0}
    parameters = {"full_attention": {"rope_type": "default"}, "sliding_attention": sliding}
    with pytest.raises(RopeScalingError, match=rf"sliding_attention\.{name} must be 'default'.*got 'linear'"):
        hf_rope({**BASE, "rope_parameters": parameters})


@pytest.mark.parametrize(
    ("scaling", "original"), [({"type": "linear", "factor": 4.0}, 2048), (YARN, 2048), ({}, 8192)]
)
def test_the_original_context_is_the_length_before_scaling(scaling, original):
    assert hf_rope({**BASE, "rope_scaling": scaling}).original_context == original


def test_gemma_3s_older_shape_is_understood():
    rope = hf_rope(
        {**BASE, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 1e4}
    )
    assert rope.sliding_rope_theta == 1e4


def test_deepseeks_rotary_part_is_its_own_size():
    assert hf_rope({**BASE, "qk_rope_head_dim": 64, "head_dim": 192}).dim == 64


def test_the_text_part_of_a_multimodal_config_counts():
    rope = hf_rope({"model_type": "x", "text_config": {**BASE, "rope_scaling": YARN}})
    assert rope.scaling.method == "yarn"


BAD = {
    "a string for a number": ({**YARN, "factor": "4"}, r"rope_scaling\.factor must be a number, got '4'"),
    "a negative factor": ({**YARN, "factor": -4.0}, "rope_scaling: rope scaling factor must be .*got -4.0"),
    "a factor below 1": ({**YARN, "factor": 0.5}, "factor must be .*got 0.5"),
    "NaN": ({**YARN, "factor": float("nan")}, "factor must be .*got nan"),
    "no factor": (
        {"rope_type": "linear", "factor": None},
        r"rope_scaling\.factor must be a number, got None",
    ),
    "an unknown type": (
        {**YARN, "rope_type": "magic"},
        r"rope_scaling\.rope_type must be one of .*got 'magic'",
    ),
    "a type that is a number": ({"type": 7, "factor": 2}, r"rope_scaling\.type must be one of .*got 7"),
    "half a token": (
        {**YARN, "original_max_position_embeddings": 0.5},
        "must be a whole number > 0, got 0.5",
    ),
    "betas the wrong way": ({**YARN, "beta_fast": 1, "beta_slow": 32}, "beta_fast must be .*got 1"),
    "truncate in words": ({**YARN, "truncate": "no"}, "truncate must be true or false, got 'no'"),
    "a temperature of 0": ({**YARN, "attention_factor": 0}, "attention_factor must be .*got 0"),
    "a list that is short": (
        {
            "rope_type": "longrope",
            "original_max_position_embeddings": 2048,
            **LISTS,
            "long_factor": [1.0] * 31,
        },
        "long_factor must be 32 numbers .*got '31 numbers'",
    ),
    "a list of words": (
        {"rope_type": "longrope", "original_max_position_embeddings": 2048, **LISTS, "short_factor": ["a"]},
        "short_factor must be a tuple of numbers",
    ),
    "a factor left to a ratio below 1": (
        {**YARN, "factor": None, "original_max_position_embeddings": 16384},
        "factor must be a number >= 1, got 0.5",
    ),
    "no object": ("yarn", r"rope_scaling must be an object, got 'yarn'"),
}


@pytest.mark.parametrize(("section", "message"), BAD.values(), ids=BAD)
def test_a_bad_value_is_refused_with_file_key_and_value(tmp_path, section, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**BASE, "rope_scaling": section}))
    with pytest.raises(RopeScalingError, match=message) as caught:
        read_hf_rope(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("missing", ["hidden_size", "max_position_embeddings"])
def test_a_missing_size_is_refused_by_name(missing):
    config = {name: value for name, value in BASE.items() if name != missing}
    with pytest.raises(RopeScalingError, match=rf"config\.json: {missing} must be a number, got None"):
        hf_rope(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_position_embeddings": True}, "max_position_embeddings must be a number, got True"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor must be a number > 0 and at most 1, got 1.5"),
        ({"partial_rotary_factor": 0.0}, "partial_rotary_factor must be a number > 0 and at most 1, got 0.0"),
    ],
)
def test_a_bad_size_is_refused_by_name(values, message):
    with pytest.raises(RopeScalingError, match=rf"config\.json: {message}"):
        hf_rope({**BASE, **values})


def test_yarn_without_a_temperature_is_by_parts():
    assert hf_rope({**BASE, "rope_scaling": {**YARN, "attention_factor": 1}}).scaling == RopeScaling(
        "by-parts", 4.0, 2048
    )


def test_a_temperature_of_1_needs_no_word_in_a_config():
    assert rope_parameters(RopeScaling("linear", 4.0, attention_factor=1.0), 1e4) == {
        "rope_type": "linear",
        "rope_theta": 1e4,
        "factor": 4.0,
    }


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_file_is_refused_by_name(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RopeScalingError, match=r"config\.json: "):
        read_hf_rope(tmp_path)


ODD = (
    *(None, "x", "4", -1, 0, float("nan"), float("inf"), True, 10**400, 1e-320),
    *([], ["yarn"], {}, {"a": 1}, [None] * 32, ["1"] * 32, [1.0] * 31, [-1.0] * 32, [float("nan")] * 32),
)
WHOLE = {**BASE, "head_dim": 64, "partial_rotary_factor": 1.0, "rotary_pct": 1.0, "text_config": {}}
SECTIONS = {
    "yarn": {**YARN, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0, "truncate": True},
    "llama3": {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {"type": "longrope", "original_max_position_embeddings": 2048, **LISTS},
    "linear": {"type": "linear", "factor": 4.0, "rope_theta": 1e4, "partial_rotary_factor": 1.0},
    "nested": {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
}


@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_any_value_in_any_place_is_read_or_refused_by_the_file_s_name(section, name):
    configs = [{**WHOLE, name: section, key: odd} for key in WHOLE for odd in ODD]
    configs += [{**WHOLE, name: {**section, key: odd}} for key in section for odd in ODD]
    configs += [{**WHOLE, name: odd} for odd in ODD]
    for config in configs:
        try:
            hf_rope(config)
        except RopeScalingError as error:
            assert str(error).startswith("config.json: "), config


DYNAMIC = {**BASE, "rope_scaling": {"type": "dynamic", "factor": 2.5}}


@pytest.mark.parametrize("seq_len", [100, 8192, 8193, 20000, 65536])
def test_dynamic_is_ntk_with_a_factor_that_follows_the_text_as_in_transformers(seq_len):
    rope = hf_rope(DYNAMIC)
    theirs, temperature = ROPE_INIT_FUNCTIONS["dynamic"](theirs_of(DYNAMIC), "cpu", seq_len=seq_len)
    got = rope.dynamic.at(seq_len).frequencies(rope.dim, rope.rope_theta)
    np.testing.assert_allclose(got.inv_freq, theirs.double().numpy(), rtol=1e-5)
    assert got.attention_factor == temperature == 1


def test_dynamic_has_the_policy_that_is_asked_for():
    rope = hf_rope(DYNAMIC)
    assert rope.dynamic_by(None) == DynamicScaling.of(
        "ntk", policy="growth", original_max_position_embeddings=8192, ntk_factor=2.5
    )
    assert rope.dynamic_by("request") == DynamicScaling.of(
        "ntk", policy="request", original_max_position_embeddings=8192, ntk_factor=2.5
    )
    assert hf_rope(BASE).dynamic_by("request") == "request"
    assert hf_rope(BASE).dynamic_by(None) is None


def test_dynamic_is_no_static_scaling():
    with pytest.raises(RopeScalingError, match=r"'dynamic' .* DynamicScaling.of\('ntk', ntk_factor=2.5\)"):
        scaling_from_hf(DYNAMIC)


def test_the_config_s_original_context_goes_before_the_section_s():
    config = {**BASE, "rope_scaling": YARN, "original_max_position_embeddings": 4096}
    rope = hf_rope(config)
    theirs, _ = ROPE_INIT_FUNCTIONS["yarn"](theirs_of(config), "cpu")
    assert rope.scaling.original_max_position_embeddings == 4096
    got = rope.scaling.frequencies(rope.dim, rope.rope_theta).inv_freq
    np.testing.assert_allclose(got, theirs.double().numpy(), rtol=1e-5)


# ---- unusual shapes of real checkpoints ------------------------------------------------------


def test_the_sections_of_a_text_part_go_before_those_around_it():
    text = {**BASE, "rope_parameters": {**YARN, "rope_theta": 1e6}}
    config = {"rope_scaling": {"type": "linear", "factor": 2.0}, "text_config": text}
    assert hf_rope(config) == hf_rope(text)
    assert hf_rope({**config, "text_config": {**BASE, "rope_parameters": None}}).scaling == RopeScaling()


def test_mrope_of_text_is_plain_rope():
    config = {**BASE, "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]}}
    theirs = theirs_of({"text_config": config}, transformers.Qwen2VLConfig).text_config.rope_parameters
    assert theirs["rope_type"] == "default"
    assert hf_rope(config).scaling == RopeScaling()


@pytest.mark.parametrize(
    "type_",
    [{}, {"rope_type": "default"}, {"rope_type": "default", "type": "yarn"}, {"type": "mrope"}],
    ids=["none", "default", "default before yarn", "mrope"],
)
def test_a_factor_that_has_no_effect_is_refused(type_):
    """transformers leaves such a model unscaled, and logs that the key is unknown."""
    section = {"factor": 4.0, "original_max_position_embeddings": 2048, **type_}
    theirs = theirs_of({"text_config": {**BASE, "rope_scaling": section}}, transformers.Qwen2VLConfig)
    assert theirs.text_config.rope_parameters["rope_type"] == "default"
    with pytest.raises(RopeScalingError, match=r"rope_scaling\.factor must be left out, .*got 4\.0"):
        hf_rope({**BASE, "rope_scaling": section})
    assert hf_rope({**BASE, "rope_scaling": {**section, "factor": 1}}).scaling == RopeScaling()


@pytest.mark.parametrize("model_type", ["gemma3_text", "gemma3n_text", "olmo3", "step3p5"])
@pytest.mark.parametrize(
    "lost", [{"rope_type": "linear", "factor": 8.0}, {"rope_theta": 7e5}], ids=["scaling", "base"]
)
def test_flat_parameters_that_layer_types_do_not_get_are_refused(model_type, lost):
    parameters = {"rope_type": "default", **lost}
    sizes = {name: value for name, value in BASE.items() if name != "rope_theta"}
    config = {**sizes, "model_type": model_type, "head_dim": 64, "rope_parameters": parameters}
    theirs = theirs_of(config, transformers.CONFIG_MAPPING[model_type]).rope_parameters["full_attention"]
    assert theirs["rope_type"] == "default" and theirs["rope_theta"] != 7e5
    with pytest.raises(RopeScalingError, match=r"rope_parameters must be by layer type: .*full_attention"):
        hf_rope(config)
    windows = {"rope_type": "default", "rope_theta": 1e4}
    by_type = {"full_attention": parameters, "sliding_attention": windows}
    ours = hf_rope({**config, "rope_parameters": by_type})
    assert ours.scaling.factor == lost.get("factor", 1.0)
    assert lost.get("rope_theta", ours.rope_theta) == ours.rope_theta


@pytest.mark.parametrize("theta", [{}, {"rope_theta": 1e6}])
def test_windows_without_a_base_have_the_config_s_and_not_that_of_the_other_layers(theta):
    parameters = {
        "full_attention": {**YARN, "rope_theta": 2e6},
        "sliding_attention": {"rope_type": "default"},
    }
    config = {name: value for name, value in BASE.items() if name != "rope_theta"} | theta
    config |= {"layer_types": ["full_attention", "sliding_attention"], "num_hidden_layers": 2}
    rope = hf_rope({**config, "rope_parameters": parameters})
    theirs = theirs_of({**config, "rope_parameters": parameters}, transformers.Qwen3Config)
    assert rope.rope_theta == theirs.rope_parameters["full_attention"]["rope_theta"] == 2e6
    assert rope.sliding_rope_theta == theirs.rope_parameters["sliding_attention"]["rope_theta"]


def test_gemma_3s_windows_without_a_base_have_the_local_one():
    parameters = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}
    config = {**BASE, "rope_parameters": parameters, "rope_local_base_freq": 2e4}
    theirs = theirs_of(config, transformers.Gemma3TextConfig).rope_parameters
    assert hf_rope(config).sliding_rope_theta == theirs["sliding_attention"]["rope_theta"] == 2e4


def test_among_parameters_by_layer_type_the_section_s_original_context_counts():
    section = {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}}
    config = {**BASE, "rope_parameters": section, "original_max_position_embeddings": 4096}
    assert hf_rope(config).scaling.original_max_position_embeddings == 2048


@pytest.mark.parametrize("rope_type", ["su", "yarn", "longrope"])
def test_phi_3_says_su_yarn_or_longrope_and_means_longrope(rope_type):
    section = {"type": rope_type, **LISTS}
    config = {**BASE, "model_type": "phi3", "rope_scaling": section, "original_max_position_embeddings": 2048}
    section = {**section, "type": "longrope"} if rope_type == "su" else section  # transformers fails on su
    theirs = theirs_of({**config, "rope_scaling": section}, transformers.Phi3Config)
    expected, temperature = ROPE_INIT_FUNCTIONS[theirs.rope_parameters["rope_type"]](theirs, seq_len=8192)
    rope = hf_rope(config)
    got = rope.scaling.frequencies(rope.dim, rope.rope_theta, seq_len=8192)
    np.testing.assert_allclose(got.inv_freq, expected.double().numpy(), rtol=2e-6)
    assert got.attention_factor == pytest.approx(temperature, rel=1e-9)


def test_phi_3_5_moe_names_its_temperature_itself():
    section = {"type": "longrope", **LISTS, "short_mscale": 1.25, "long_mscale": 1.25}
    config = {**BASE, "rope_scaling": section, "original_max_position_embeddings": 2048}
    assert hf_rope(config).scaling.temperature() == 1.25
    section["short_mscale"] = 1.0
    with pytest.raises(
        RopeScalingError, match=r"short_mscale must be the same as long_mscale = 1\.25.*got 1"
    ):
        hf_rope(config)


def test_a_fixed_alpha_of_dynamic_is_refused():
    """transformers stretches the base of HunYuan by alpha, for every length of the text."""
    section = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}
    with pytest.raises(RopeScalingError, match=r"rope_scaling\.alpha must be left out: .*got 1000\.0"):
        hf_rope({**BASE, "rope_scaling": section})


def test_gpt_neox_s_names_of_base_and_fraction_are_known():
    config = {name: value for name, value in BASE.items() if name != "rope_theta"}
    config |= {"rotary_emb_base": 25000, "rotary_pct": 0.25}
    theirs = theirs_of(config, transformers.GPTNeoXConfig).rope_parameters
    rope = hf_rope(config)
    assert rope.rope_theta == theirs["rope_theta"] == 25000
    assert rope.dim == 64 * theirs["partial_rotary_factor"] == 16


def test_minimax_m2_s_rotary_dim_is_a_number_of_dimensions():
    config = {**BASE, "head_dim": 128, "rotary_dim": 64}
    theirs = theirs_of(config, transformers.MiniMaxM2Config).rope_parameters
    assert hf_rope(config).dim == 128 * theirs["partial_rotary_factor"] == 64
    assert hf_rope({**config, "partial_rotary_factor": 0.25}).dim == 32


@pytest.mark.parametrize("value", [2048.0, 2048])
def test_a_context_may_be_written_as_a_float(value):
    config = {**BASE, "rope_scaling": {**YARN, "original_max_position_embeddings": value, "factor": 4}}
    assert hf_rope(config).scaling == RopeScaling("yarn", 4.0, 2048)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_missing_values_have_transformers_defaults(model_type):
    config = {"hidden_size": 320, "num_attention_heads": 4, "max_position_embeddings": 8192}
    config |= {"model_type": model_type} | ({"qk_rope_head_dim": 32} if "deepseek" in model_type else {})
    theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(config))).get_text_config()
    parameters = theirs.rope_parameters
    parameters = parameters.get("full_attention", parameters)
    rope = hf_rope(config)
    assert rope.rope_theta == parameters["rope_theta"]
    if model_type == "gpt_oss":  # only this one is scaled by default
        parameters = {name: value for name, value in parameters.items() if name != "rope_theta"}
        expected = {"beta_fast": 32.0, "beta_slow": 1.0, **rope_parameters(rope.scaling, 1.0)}
        assert parameters == {name: value for name, value in expected.items() if name != "rope_theta"}
    else:
        assert rope.scaling == RopeScaling()
    head = getattr(theirs, "qk_rope_head_dim", None) or getattr(theirs, "head_dim", None) or 80
    assert rope.dim == head * parameters.get("partial_rotary_factor", 1)


@pytest.mark.parametrize("method", ["linear", "llama3", "longrope"])
def test_deepseek_s_mscale_all_dim_without_yarn_is_refused(method):
    """transformers multiplies the attention logits without yarn, too."""
    section = {"rope_type": method, "factor": 4.0, "mscale_all_dim": 0.7}
    with pytest.raises(RopeScalingError, match=r"rope_scaling\.mscale_all_dim must be left out: .*got 0\.7"):
        hf_rope({**BASE, "rope_scaling": section})


def test_a_section_of_rope_scaling_beside_parameters_by_layer_type_is_refused():
    """In transformers, Gemma 3 merges the two sections, and Qwen3 drops the second."""
    parameters = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
    with pytest.raises(RopeScalingError, match=r"config\.json: rope_scaling must be left out: "):
        hf_rope({**BASE, "rope_scaling": YARN, "rope_parameters": parameters})
