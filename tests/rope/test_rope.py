"""rope.py against three independent witnesses: tests/helpers/reference.py, transformers, and stated facts."""

import dataclasses
import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from yarn_gguf.errors import RopeScalingError, YarnGGUFError
from yarn_gguf.rope.formulas import ggml_attn_factor, ntk_base, yarn_mscale
from yarn_gguf.rope.scaling import METHODS, RAMPS, RopeScaling

# No deadlines: a busy machine is no failure.
often = settings(max_examples=100, deadline=None)
sometimes = settings(max_examples=50, deadline=None)

LLAMA_2 = {"dim": 128, "rope_theta": 10000.0}
YARN_LLAMA_2 = RopeScaling("yarn", 16.0, 4096)

# What each method needs to be made at all, for 128 rotary dimensions.
NEEDED = {
    "none": {},
    "linear": {},
    "ntk": {},
    "by-parts": {"original_max_position_embeddings": 4096},
    "yarn": {"original_max_position_embeddings": 4096},
    "llama3": {"original_max_position_embeddings": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {
        "original_max_position_embeddings": 4096,
        "short_factor": (1.0,) * 64,
        "long_factor": (1.0,) * 64,
    },
    "explicit": {"inv_freq": tuple(10000.0 ** (-i / 64) for i in range(64))},
}


def make(method, **changes):
    return RopeScaling(method, **{**NEEDED[method], **changes})


# Strategies: models and scalings as they occur, and a good way beyond.

dims = st.integers(1, 128).map(lambda half: 2 * half)
bases = st.floats(500.0, 1e7)
factors = st.one_of(st.just(1.0), st.floats(1.0, 64.0), st.integers(1, 64))
contexts = st.integers(16, 1_000_000)
beta_slows = st.floats(0.25, 4.0)
beta_ratios = st.floats(4.0, 64.0)


@st.composite
def models(draw, min_dim=2):
    return {"dim": draw(dims.filter(lambda dim: dim >= min_dim)), "rope_theta": draw(bases)}


@st.composite
def by_parts_scalings(draw, method=None, ramp=None):
    beta_slow = draw(beta_slows)
    return RopeScaling(
        method or draw(st.sampled_from(("by-parts", "yarn"))),
        draw(factors),
        draw(contexts),
        beta_fast=beta_slow * draw(beta_ratios),
        beta_slow=beta_slow,
        ramp=ramp or draw(st.sampled_from(RAMPS)),
        truncate=draw(st.booleans()),
    )


def by_parts_cases(method=None, ramp=None):
    """A model, and a scaling whose ramp ends where it begins or beyond."""
    return st.tuples(models(), by_parts_scalings(method, ramp)).filter(lambda case: not is_crossed(*case))


def index_bounds(model, scaling):
    return tuple(
        reference.index_of_rotations(n, *model.values(), scaling.original_max_position_embeddings)
        for n in (scaling.beta_fast, scaling.beta_slow)
    )


def is_crossed(model, scaling):
    low, high = index_bounds(model, scaling)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    return scaling.ramp == "index" and max(low, 0) > min(high, model["dim"] - 1)


@st.composite
def llama3_scalings(draw):
    low = draw(st.floats(0.25, 8.0))
    high = low * draw(st.floats(2.0, 16.0))
    return RopeScaling("llama3", draw(factors), draw(contexts), low_freq_factor=low, high_freq_factor=high)


@st.composite
def longrope_cases(draw):
    """A model, a longrope scaling for it, and a sequence length within or beyond the original context."""
    model = draw(models())
    half = model["dim"] // 2
    context = draw(contexts)
    short, long = (  # ranges apart: were the lists equal, it would not show which one was taken
        tuple(draw(st.lists(st.floats(*bounds), min_size=half, max_size=half)))
        for bounds in ((0.5, 4.0), (4.5, 64.0))
    )
    scaling = RopeScaling("longrope", draw(factors), context, short_factor=short, long_factor=long)
    seq_len = draw(st.sampled_from((1, context - 1, context, context + 1, 8 * context)))
    return model, scaling, seq_len


def assert_same(actual, expected, rtol=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=0)


# Against tests/helpers/reference.py, to 1e-12 ---------------------------------------------------------------


@often
@given(models())
def test_no_scaling_agrees_with_the_reference(model):
    result = RopeScaling().frequencies(**model)
    assert_same(result.inv_freq, reference.none_frequencies(*model.values()))
    assert result.attention_factor == 1


@often
@given(models(), factors)
def test_linear_agrees_with_the_reference(model, factor):
    result = RopeScaling("linear", factor).frequencies(**model)
    assert_same(result.inv_freq, reference.linear_frequencies(*model.values(), factor))
    assert result.attention_factor == 1


@often
@given(models(min_dim=4), factors)
def test_ntk_agrees_with_the_reference(model, factor):
    result = RopeScaling("ntk", factor).frequencies(**model)
    assert_same(result.inv_freq, reference.ntk_frequencies(*model.values(), factor))
    assert result.attention_factor == 1


@often
@given(by_parts_cases(ramp="index"))
def test_index_ramp_agrees_with_the_reference(case):
    model, scaling = case
    expected = reference.by_parts_frequencies(
        *model.values(),
        scaling.factor,
        scaling.original_max_position_embeddings,
        reference.index_ramp,
        beta_fast=scaling.beta_fast,
        beta_slow=scaling.beta_slow,
        truncate=scaling.truncate,
    )
    assert_same(scaling.frequencies(**model).inv_freq, expected)


@often
@given(by_parts_cases(ramp="rotations"))
def test_rotations_ramp_agrees_with_the_reference(case):
    model, scaling = case
    expected = reference.by_parts_frequencies(
        *model.values(),
        scaling.factor,
        scaling.original_max_position_embeddings,
        reference.rotations_ramp,
        alpha=scaling.beta_slow,
        beta=scaling.beta_fast,
    )
    assert_same(scaling.frequencies(**model).inv_freq, expected)


@often
@given(models(), llama3_scalings())
def test_llama3_agrees_with_the_reference(model, scaling):
    expected = reference.llama3_frequencies(
        *model.values(),
        scaling.factor,
        scaling.original_max_position_embeddings,
        scaling.low_freq_factor,
        scaling.high_freq_factor,
    )
    result = scaling.frequencies(**model)
    assert_same(result.inv_freq, expected)
    assert result.attention_factor == 1


@often
@given(longrope_cases())
def test_longrope_agrees_with_the_reference(case):
    model, scaling, seq_len = case
    context = scaling.original_max_position_embeddings
    expected = reference.longrope_frequencies(
        *model.values(), context, scaling.short_factor, scaling.long_factor, seq_len
    )
    result = scaling.frequencies(**model, seq_len=seq_len)
    assert_same(result.inv_freq, expected)
    assert_same(result.attention_factor, reference.longrope_temperature(scaling.factor, context))


@often
@given(factors, contexts, st.floats(0.1, 4.0), st.floats(0.1, 4.0))
def test_temperatures_agree_with_the_reference(factor, context, mscale, mscale_all_dim):
    yarn = RopeScaling("yarn", factor, context)
    assert_same(yarn.temperature(), reference.yarn_temperature(factor))
    deepseek = dataclasses.replace(yarn, mscale=mscale, mscale_all_dim=mscale_all_dim)
    expected = reference.deepseek_temperature(factor, mscale, mscale_all_dim)
    assert_same(deepseek.temperature(), expected)
    assert deepseek.frequencies(**LLAMA_2).attention_factor == deepseek.temperature()
    longrope = make("longrope", factor=factor, original_max_position_embeddings=context)
    assert_same(longrope.temperature(), reference.longrope_temperature(factor, context))


@often
@given(st.floats(0.1, 4.0), factors)
def test_ggml_multiplies_its_attn_factor_back_to_the_attention_factor(attention_factor, factor):
    attn_factor = ggml_attn_factor(attention_factor, factor)
    total = reference.ggml_total_temperature(attn_factor, freq_scale=1 / factor, ext_factor=1.0)
    assert_same(total, attention_factor)


# Against transformers, which computes in float32 ----------------------------------------------------


@pytest.fixture(scope="module")
def hf():
    """transformers' own function for a rope type: hf(model, max_position_embeddings, parameters)."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    def frequencies(model, length, parameters, **kwargs):
        config = transformers.LlamaConfig(
            head_dim=model["dim"],
            max_position_embeddings=length,
            rope_parameters={"rope_theta": model["rope_theta"], **parameters},
        )
        kind = parameters["rope_type"]
        compute = (
            LlamaRotaryEmbedding.compute_default_rope_parameters
            if kind == "default"
            else ROPE_INIT_FUNCTIONS[kind]
        )
        inv_freq, attention_factor = compute(config, **kwargs)
        return inv_freq.double().numpy(), attention_factor

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it warns of every factor that is not length / L
    yield frequencies
    transformers.logging.set_verbosity(verbosity)


def assert_same_in_float32(actual, expected, model, ramp_ulps=0.0):
    """Equal to float32 rounding: about 1e-6, more for a large base or factor.

    Rounding the exponent 2i/d moves b^(2i/d) by ln(b) half ulps at most; `ramp_ulps` is what else the
    rounding of the ramp g makes of (1-g)/s + g: near g = 0 that is s times the error of g.
    """
    rtol = 2.0**-24 * (6 + math.log(model["rope_theta"]) + ramp_ulps)
    np.testing.assert_allclose(actual.inv_freq, expected[0], rtol=rtol, atol=0)
    assert actual.attention_factor == pytest.approx(expected[1], rel=1e-12)


@sometimes
@given(models())
def test_no_scaling_agrees_with_transformers(hf, model):
    expected = hf(model, 4096, {"rope_type": "default"})
    assert_same_in_float32(RopeScaling().frequencies(**model), expected, model)


@sometimes
@given(models(), factors)
def test_linear_agrees_with_transformers(hf, model, factor):
    expected = hf(model, 4096, {"rope_type": "linear", "factor": factor})
    assert_same_in_float32(RopeScaling("linear", factor).frequencies(**model), expected, model)


@sometimes
@given(models(min_dim=4), st.integers(1, 64))
def test_ntk_agrees_with_transformers_dynamic_at_the_length_that_gives_its_factor(hf, model, factor):
    # transformers' base is b (f l'/L - (f-1))^(d/(d-2)); with f = 1 that is b (l'/L)^(d/(d-2)).
    dynamic = {"rope_type": "dynamic", "factor": 1.0}
    expected = hf(model, 4096, dynamic, seq_len=4096 * factor)
    assert_same_in_float32(RopeScaling("ntk", factor).frequencies(**model), expected, model)


def yarn_parameters(scaling):
    names = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate")
    optional = ("attention_factor", "mscale", "mscale_all_dim")
    given_values = {name: getattr(scaling, name) for name in optional if getattr(scaling, name) is not None}
    return {"rope_type": "yarn", **{name: getattr(scaling, name) for name in names}, **given_values}


def rounding_of_the_bounds(model, scaling):
    """In ulps of the ramp: half an ulp of a bound that is no whole number, over the width of the ramp."""
    low, high = index_bounds(model, scaling)
    return 0 if scaling.truncate else max(low, 0) / max(high - low, 0.001)


@often
@given(by_parts_cases("yarn", "index"), st.data())
def test_yarn_agrees_with_transformers(hf, case, data):
    model, scaling = case
    positive = st.one_of(st.none(), st.floats(0.1, 4.0))
    temperature = {
        name: data.draw(positive, label=name) for name in ("attention_factor", "mscale", "mscale_all_dim")
    }
    scaling = dataclasses.replace(scaling, **temperature)
    length = round(scaling.factor * scaling.original_max_position_embeddings)
    expected = hf(model, length, yarn_parameters(scaling))
    ramp_ulps = (2 + rounding_of_the_bounds(model, scaling)) * scaling.factor
    assert_same_in_float32(scaling.frequencies(**model), expected, model, ramp_ulps)


@sometimes
@given(models(), llama3_scalings())
def test_llama3_agrees_with_transformers(hf, model, scaling):
    names = ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    parameters = {"rope_type": "llama3", **{name: getattr(scaling, name) for name in names}}
    expected = hf(model, 131072, parameters)
    # Its ramp comes from theta_i, with theta_i's error, and may be steep.
    steepness = scaling.low_freq_factor / (scaling.high_freq_factor - scaling.low_freq_factor)
    ulps = scaling.factor * steepness * (6 + math.log(model["rope_theta"]))
    assert_same_in_float32(scaling.frequencies(**model), expected, model, ramp_ulps=ulps)


@sometimes
@given(longrope_cases(), st.one_of(st.none(), st.floats(0.1, 4.0)))
def test_longrope_agrees_with_transformers(hf, case, attention_factor):
    model, scaling, seq_len = case
    scaling = dataclasses.replace(scaling, attention_factor=attention_factor)
    parameters = {
        "rope_type": "longrope",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
        "attention_factor": attention_factor,
        "short_factor": list(scaling.short_factor),
        "long_factor": list(scaling.long_factor),
    }
    expected = hf(model, 131072, parameters, seq_len=seq_len)
    assert_same_in_float32(scaling.frequencies(**model, seq_len=seq_len), expected, model)


# Golden values: transformers 5.23.0, torch 2.13.0+cpu, float32, printed by
#   c = LlamaConfig(head_dim=d, max_position_embeddings=n, rope_parameters={"rope_type": kind, ...})
#   f, a = ROPE_INIT_FUNCTIONS[kind](c); print({i: float(f[i]) for i in ...}, a)
GOLDEN = {
    "Llama-2 YaRN, 4k to 64k": (
        YARN_LLAMA_2,
        LLAMA_2,
        {
            0: 1.0,
            1: 0.8659643530845642,
            20: 0.05623412877321243,
            21: 0.04694085940718651,
            30: 0.008526843972504139,
            45: 0.00015177164459601045,
            46: 8.334509038832039e-05,
            63: 7.217387064883951e-06,
        },
        1.2772588722239782,
    ),
    "gpt-oss: YaRN without truncation": (
        RopeScaling("yarn", 32.0, 4096, truncate=False),
        {"dim": 64, "rope_theta": 150000.0},
        {
            0: 1.0,
            1: 0.6890442967414856,
            8: 0.05081327259540558,
            9: 0.031705696135759354,
            13: 0.0038603590801358223,
            17: 0.00012931869423482567,
            18: 3.830881178146228e-05,
            31: 3.023511396804679e-07,
        },
        1.3465735902799727,
    ),
    "Llama 3.1": (
        make("llama3", factor=8.0),
        {"dim": 128, "rope_theta": 500000.0},
        {
            0: 1.0,
            1: 0.8146172165870667,
            20: 0.016560440883040428,
            30: 0.0013718936825171113,
            45: 1.2297638932068367e-05,
            63: 3.068925877869333e-07,
        },
        1.0,
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values_of_transformers(name):
    scaling, model, inv_freq, attention_factor = GOLDEN[name]
    actual = scaling.frequencies(**model)
    assert actual.inv_freq[list(inv_freq)] == pytest.approx(list(inv_freq.values()), rel=2e-6)
    assert actual.attention_factor == pytest.approx(attention_factor, rel=1e-15)


# Facts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_factor_one_equals_unscaled_rope(method):
    # longrope's lists are all ones here: its factor sets the temperature alone.
    actual = make(method, factor=1.0).frequencies(**LLAMA_2)
    assert_same(actual.inv_freq, RopeScaling().frequencies(**LLAMA_2).inv_freq, rtol=1e-15)
    assert actual.attention_factor == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_frequency_table_is_float64_with_one_entry_a_pair_of_dimensions(method):
    inv_freq = make(method, factor=2.0).frequencies(**LLAMA_2).inv_freq
    assert inv_freq.dtype == np.float64
    assert inv_freq.shape == (64,)
    assert make(method, factor=2.0).interpolation(**LLAMA_2).shape == (64,)


@often
@given(by_parts_cases())
def test_interpolation_grows_with_the_wavelength_from_0_to_1(case):
    model, scaling = case
    interpolation = scaling.interpolation(**model)
    assert np.all(np.diff(interpolation) >= 0)
    assert np.all((interpolation >= 0) & (interpolation <= 1))


@often
@given(by_parts_cases())
def test_yarn_frequencies_lie_between_interpolated_and_unscaled(case):
    model, scaling = case
    theta = RopeScaling().frequencies(**model).inv_freq
    inv_freq = scaling.frequencies(**model).inv_freq
    ulps = 4 * np.finfo(np.float64).eps * theta
    assert np.all(inv_freq <= theta + ulps)
    assert np.all(inv_freq >= theta / scaling.factor - ulps)


@often
@given(by_parts_cases(), factors)
def test_interpolation_does_not_depend_on_the_factor(case, factor):
    model, scaling = case
    other = dataclasses.replace(scaling, factor=factor)
    assert np.array_equal(other.interpolation(**model), scaling.interpolation(**model))


@often
@given(by_parts_cases("yarn"))
def test_yarn_is_by_parts_with_a_temperature(case):
    model, yarn = case
    by_parts = dataclasses.replace(yarn, method="by-parts").frequencies(**model)
    assert np.array_equal(yarn.frequencies(**model).inv_freq, by_parts.inv_freq)
    assert by_parts.attention_factor == 1


def test_yarn_of_llama_2_keeps_the_fast_dimensions_and_interpolates_the_slow_ones():
    # c(32) = 20.94 and c(1) = 45.03 for d = 128, L = 4096, b = 10000: the ramp goes from 20 to 46.
    theta = RopeScaling().frequencies(**LLAMA_2).inv_freq
    inv_freq = YARN_LLAMA_2.frequencies(**LLAMA_2).inv_freq
    assert np.array_equal(inv_freq[:21], theta[:21])
    assert np.array_equal(inv_freq[46:], theta[46:] / 16)
    assert np.all((inv_freq[21:46] < theta[21:46]) & (inv_freq[21:46] > theta[21:46] / 16))
    assert_same(YARN_LLAMA_2.interpolation(**LLAMA_2)[20:47], np.arange(27) / 26)


def test_rotations_ramp_keeps_32_turns_and_more_and_interpolates_1_turn_and_less():
    theta = RopeScaling().frequencies(**LLAMA_2).inv_freq
    turns = 4096 * theta / (2 * math.pi)
    inv_freq = RopeScaling("yarn", 16.0, 4096, ramp="rotations").frequencies(**LLAMA_2).inv_freq
    assert np.array_equal(inv_freq[turns >= 32], theta[turns >= 32])
    assert np.array_equal(inv_freq[turns <= 1], theta[turns <= 1] / 16)
    assert (turns >= 32).sum() == 21 and (turns <= 1).sum() == 18


def test_truncation_only_widens_the_ramp():
    # Outwards: fewer dimensions are left alone, fewer are wholly interpolated.
    exact = RopeScaling("yarn", 16.0, 4096, truncate=False).interpolation(**LLAMA_2)
    rounded = YARN_LLAMA_2.interpolation(**LLAMA_2)
    assert np.flatnonzero(exact).min() >= np.flatnonzero(rounded).min()
    assert np.flatnonzero(exact == 1).min() <= np.flatnonzero(rounded == 1).min()
    assert not np.array_equal(exact, rounded)


@often
@given(models(min_dim=4), factors)
def test_ntk_slows_the_slowest_frequency_by_the_factor_and_leaves_the_fastest(model, factor):
    theta = RopeScaling().frequencies(**model).inv_freq
    inv_freq = RopeScaling("ntk", factor).frequencies(**model).inv_freq
    assert inv_freq[0] == theta[0] == 1
    assert_same(inv_freq[-1], theta[-1] / factor)


def test_ntk_is_a_new_base():
    # b' = 10000 * 4^(128/126): what an unpatched llama.cpp needs as freq_base.
    base = ntk_base(10000.0, 4.0, 128)
    assert base == pytest.approx(40889.9, rel=1e-5)
    unscaled = RopeScaling().frequencies(128, base).inv_freq
    assert_same(RopeScaling("ntk", 4.0).frequencies(**LLAMA_2).inv_freq, unscaled)


@pytest.mark.parametrize("factor", [1.5, 2, 4.0, 16.0, 40.0])
def test_yarn_temperature_is_a_tenth_of_ln_s_plus_one(factor):
    temperature = RopeScaling("yarn", factor, 4096).temperature()
    assert_same(temperature, 0.1 * math.log(factor) + 1)
    assert yarn_mscale(factor) == temperature


def test_yarn_temperature_of_factor_one_is_one_whatever_the_mscale():
    assert RopeScaling("yarn", 1.0, 4096, mscale=2.0, mscale_all_dim=0.5).temperature() == 1
    assert yarn_mscale(0.5) == 1  # dynamic scaling may ask for a context that is shorter than L


def test_equal_mscales_cancel():
    # DeepSeek-V3's config.json: factor 40, mscale 1.0, mscale_all_dim 1.0.
    assert RopeScaling("yarn", 40.0, 4096, mscale=1.0, mscale_all_dim=1.0).temperature() == 1


def test_mscale_raises_the_temperature_and_mscale_all_dim_lowers_it():
    scaling = RopeScaling("yarn", 40.0, 4096, mscale=1.0, mscale_all_dim=0.707)
    assert_same(scaling.temperature(), (1 + 0.1 * math.log(40)) / (1 + 0.0707 * math.log(40)))
    assert scaling.temperature() > 1


@pytest.mark.parametrize("alone", ["mscale", "mscale_all_dim"])
def test_one_mscale_without_the_other_is_ignored_as_in_transformers(alone):
    scaling = RopeScaling("yarn", 40.0, 4096, **{alone: 0.5})
    assert_same(scaling.temperature(), 0.1 * math.log(40) + 1)


@pytest.mark.parametrize("method", METHODS)
def test_an_attention_factor_of_its_own_comes_first(method):
    scaling = make(method, factor=40.0, attention_factor=0.75, mscale=1.0, mscale_all_dim=0.5)
    assert scaling.temperature() == 0.75
    assert scaling.frequencies(**LLAMA_2).attention_factor == 0.75


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("yarn", "longrope")])
def test_only_yarn_and_longrope_have_a_temperature(method):
    assert make(method, factor=40.0, mscale=1.0, mscale_all_dim=0.5).temperature() == 1


def test_ggml_needs_no_attn_factor_for_yarns_own_temperature():
    assert ggml_attn_factor(YARN_LLAMA_2.temperature(), 16.0) == 1


def test_ggml_attn_factor_takes_back_what_ggml_multiplies_in():
    assert ggml_attn_factor(1.0, 16.0) == pytest.approx(1 / (1 + 0.1 * math.log(16)), rel=1e-15)
    assert ggml_attn_factor(0.75, 1.0) == 0.75


@pytest.mark.parametrize("seq_len, divisor", [(1, 2), (4096, 2), (4097, 8), (131072, 8), (None, 8)])
def test_longrope_is_long_beyond_the_original_context_or_without_a_length(seq_len, divisor):
    scaling = make("longrope", factor=32.0, short_factor=(2.0,) * 64, long_factor=(8.0,) * 64)
    theta = RopeScaling().frequencies(**LLAMA_2).inv_freq
    assert_same(scaling.frequencies(**LLAMA_2, seq_len=seq_len).inv_freq, theta / divisor)


def test_longrope_temperature_of_phi_3_mini_128k():
    # Phi-3-mini-128k: L = 4096, s = 131072 / 4096 = 32; sqrt(1 + 5/12), both being powers of two.
    assert_same(make("longrope", factor=32.0).temperature(), math.sqrt(1 + 5 / 12))


@pytest.mark.parametrize("method", [m for m in METHODS if m != "longrope"])
def test_the_sequence_length_matters_to_longrope_alone(method):
    scaling = make(method, factor=4.0)
    short, long = (scaling.frequencies(**LLAMA_2, seq_len=n).inv_freq for n in (1, 10**6))
    assert np.array_equal(short, long)


def test_interpolation_is_computed_back_from_the_frequencies_of_every_other_method():
    assert np.all(make("none", factor=4.0).interpolation(**LLAMA_2) == 0)
    assert_same(make("linear", factor=4.0).interpolation(**LLAMA_2), np.ones(64))
    ntk = make("ntk", factor=4.0).interpolation(**LLAMA_2)
    assert ntk[0] == 0 and np.all(np.diff(ntk) > 0) and ntk[-1] == pytest.approx(1, rel=1e-12)
    longrope = make("longrope", factor=4.0, long_factor=(4.0,) * 32 + (1.0,) * 32)
    assert_same(longrope.interpolation(**LLAMA_2), np.repeat([1.0, 0.0], 32))


def test_interpolation_of_llama3_is_0_above_high_and_1_below_low_freq_factor():
    scaling = make("llama3", factor=8.0)
    turns = 8192 * RopeScaling().frequencies(128, 500000.0).inv_freq / (2 * math.pi)
    interpolation = scaling.interpolation(128, 500000.0)
    np.testing.assert_allclose(interpolation, np.clip((4 - turns) / 3, 0, 1), atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_factor_one_interpolates_nothing_but_by_the_ramp(method):
    # The ramp is where frequencies would be interpolated, which factor one leaves undecided elsewhere.
    interpolation = make(method, factor=1.0).interpolation(**LLAMA_2)
    if method in ("by-parts", "yarn"):
        assert np.array_equal(interpolation, make(method, factor=2.0).interpolation(**LLAMA_2))
    else:
        assert np.all(interpolation == 0)


@pytest.mark.parametrize("context", [16, 128])
def test_a_ramp_whose_ends_coincide_is_a_step(context):
    # d = 2: low and high clamp to 0 or to d - 1 = 1; a division by zero would be a warning, thus an error.
    scaling = RopeScaling("yarn", 4.0, context)
    with np.errstate(all="raise"):
        actual = scaling.frequencies(2, 100.0).inv_freq
    expected = reference.by_parts_frequencies(2, 100.0, 4.0, context, reference.index_ramp)
    assert_same(actual, expected)
    assert actual[0] in (1.0, 0.25)


def test_ramp_bounds_that_coincide_within_the_table_give_a_step():
    # Both clamp to 0: the first dimension turns less than once within 6 tokens and yet is left alone, as in
    # the reference code and transformers.
    scaling = RopeScaling("yarn", 4.0, 6, beta_fast=4.0)
    low, high = (reference.index_of_rotations(n, 8, 10000.0, 6) for n in (4.0, 1.0))
    assert low < 0 and math.ceil(high) == 0
    assert scaling.interpolation(8, 10000.0).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("context", [1, 100_000_000])
def test_a_ramp_whose_bounds_cross_is_refused_as_transformers_and_ggml_take_it_for_two_things(
    context, truncate
):
    scaling = RopeScaling("yarn", 4.0, context, truncate=truncate)
    with pytest.raises(RopeScalingError, match=f"original_max_position_embeddings .* got {context}"):
        scaling.frequencies(64, 500.0)


# Where scalings come from ---------------------------------------------------------------------------


def test_the_original_context_can_be_filled_in_but_not_replaced():
    scaling = RopeScaling("yarn", 4.0, beta_fast=16.0)
    filled = scaling.with_original_context(4096)
    assert filled == RopeScaling("yarn", 4.0, 4096, beta_fast=16.0)
    assert filled.with_original_context(8192) == filled
    assert scaling.original_max_position_embeddings is None


def test_a_scaling_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        YARN_LLAMA_2.factor = 4.0
    assert len({YARN_LLAMA_2, RopeScaling("yarn", 16.0, 4096)}) == 1


# What is refused ------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
NOT_POSITIVE = [NAN, INF, -INF, "4", True, False, [4.0], {}, 1j, 0, 0.0, -1, -0.5, 10**400, 1e300, 1e-300]
NOT_TEXT = [None, True, 1, 1.0, "", "YaRN", "dynamic", "index ", ["yarn"]]

REFUSED = [
    *((name, "yarn", value) for name in ("method", "ramp") for value in NOT_TEXT),
    *(("truncate", "yarn", value) for value in (None, 0, 1, 1.0, "false", NAN)),
    *(("factor", "yarn", value) for value in (None, 0.5, 0.999999, *NOT_POSITIVE)),
    *(("beta_slow", "yarn", value) for value in (None, *NOT_POSITIVE)),
    *(("beta_fast", "yarn", value) for value in (None, 1, 1.0, 0.5, *NOT_POSITIVE)),
    *(
        (name, "yarn", value)
        for name in ("attention_factor", "mscale", "mscale_all_dim")
        for value in NOT_POSITIVE
    ),
    *(
        ("original_max_position_embeddings", method, value)
        for method in ("none", "yarn", "llama3", "longrope")
        for value in (4096.0, "4096", *NOT_POSITIVE)
    ),
    ("original_max_position_embeddings", "longrope", 1),
    *(("low_freq_factor", "llama3", value) for value in (None, *NOT_POSITIVE)),
    *(("high_freq_factor", "llama3", value) for value in (None, 1.0, 0.5, *NOT_POSITIVE)),
    *(
        (name, "longrope", value)
        for name in ("short_factor", "long_factor")
        for value in (None, (), [1.0] * 64, "1.0", 1.0, *((1.0, bad) for bad in NOT_POSITIVE), (1.0, None))
    ),
]


@pytest.mark.parametrize("name, method, value", REFUSED, ids=lambda value: repr(value)[:20])
def test_a_bad_value_is_refused_by_its_name(name, method, value):
    values = {"method": method, **NEEDED[method], name: value}
    with pytest.raises(RopeScalingError) as caught:
        RopeScaling(**values)
    message = str(caught.value)
    assert message.startswith(f"rope scaling {name} must be ")
    assert message.endswith(f"got {value!r}")


@pytest.mark.parametrize("beta_fast, beta_slow", [(1.0, 32.0), (4.0, 4.0), (1, 1)])
def test_beta_fast_must_exceed_beta_slow(beta_fast, beta_slow):
    with pytest.raises(RopeScalingError, match=rf"beta_fast must be .* {beta_slow}, got {beta_fast}"):
        RopeScaling("yarn", 4.0, 4096, beta_fast=beta_fast, beta_slow=beta_slow)


def test_an_error_shows_the_fix():
    with pytest.raises(RopeScalingError, match=r"^rope scaling factor must be a number >= 1, got 0\.5$"):
        RopeScaling("linear", 0.5)
    with pytest.raises(RopeScalingError, match=r"method must be one of none, linear, ntk, .* got 'dynamic'"):
        RopeScaling("dynamic")


def test_a_rope_scaling_error_is_a_value_error_of_this_package():
    assert issubclass(RopeScalingError, ValueError)
    assert issubclass(RopeScalingError, YarnGGUFError)


BAD_MODELS = [
    *(("dim", value) for value in (127, 1, 0, -2, 64.0, NAN, "128", None, True, [128])),
    *(("rope_theta", value) for value in (1, 1.0, 0.5, 0, -1, NAN, INF, 10**400, "1e4", None, True)),
]


@pytest.mark.parametrize("what", ["frequencies", "interpolation"])
@pytest.mark.parametrize("method", ["none", "yarn", "ntk"])
@pytest.mark.parametrize("name, value", BAD_MODELS, ids=lambda value: repr(value)[:20])
def test_a_bad_dimension_or_base_is_refused_by_its_name(what, method, name, value):
    with pytest.raises(RopeScalingError, match=rf"^rope scaling {name} must be .*got "):
        getattr(make(method), what)(**{**LLAMA_2, name: value})


@pytest.mark.parametrize("method", ["by-parts", "yarn", "llama3", "longrope"])
def test_a_missing_original_context_is_named_where_it_is_needed(method):
    scaling = make(method, factor=4.0, original_max_position_embeddings=None)
    expected = rf"original_max_position_embeddings must be .*\({method} needs it\), got None"
    uses = [lambda: scaling.frequencies(**LLAMA_2, seq_len=1), lambda: scaling.interpolation(**LLAMA_2)]
    if method == "longrope":
        uses.append(scaling.temperature)
    for use in uses:
        with pytest.raises(RopeScalingError, match=expected):
            use()


@pytest.mark.parametrize("method", ["none", "linear", "ntk"])
def test_an_original_context_is_not_asked_for_where_it_is_not_needed(method):
    assert make(method, factor=4.0).frequencies(**LLAMA_2).attention_factor == 1


@pytest.mark.parametrize("count", [1, 63, 65, 128])
@pytest.mark.parametrize(
    "name, seq_len", [("short_factor", 4096), ("long_factor", 4097), ("long_factor", None)]
)
def test_a_longrope_list_of_the_wrong_length_is_refused(name, seq_len, count):
    scaling = make("longrope", **{name: (1.0,) * count})
    expected = f"{name} must be 64 numbers for 128 rotary dimensions, got '{count} numbers'"
    with pytest.raises(RopeScalingError, match=expected):
        scaling.frequencies(**LLAMA_2, seq_len=seq_len)


def test_ntk_is_refused_for_two_rotary_dimensions():
    with pytest.raises(RopeScalingError, match=r"dim must be more than 2 rotary dimensions.* got 2"):
        RopeScaling("ntk", 4.0).frequencies(2, 10000.0)


# What a hostile config.json or GGUF could hold: any number, and some things that are none.
wild = st.one_of(
    st.floats(),
    st.floats(1, 1e38),
    st.integers(),
    st.integers(1, 10**6),
    st.sampled_from((None, True, "1", 2.0**-126, 1.1754942e-38, 3.4028234e38, 10**400, 1 + 2**-52)),
)
wild_lists = st.one_of(wild, st.lists(st.floats(1e-37, 1e38), min_size=4, max_size=4).map(tuple))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_value_is_refused_or_gives_finite_positive_frequencies(data):
    def draw(name):
        return data.draw(st.one_of(st.floats(1, 1e38, exclude_min=True), wild), label=name)

    method = data.draw(st.sampled_from(METHODS))
    values = {
        "factor": draw("factor"),
        "original_max_position_embeddings": data.draw(st.one_of(wild, st.integers(1, 10**38))),
        "ramp": data.draw(st.sampled_from(RAMPS)),
        "truncate": data.draw(st.booleans()),
    }
    extras = {
        "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"),
        "by-parts": ("beta_fast", "beta_slow"),
        "llama3": ("low_freq_factor", "high_freq_factor"),
    }.get(method, ())
    # Each is wild only now and then: else nothing would ever get past the checks.
    for name in extras:
        if data.draw(st.booleans()):
            values[name] = draw(name)
        elif name in NEEDED[method]:
            values[name] = NEEDED[method][name]
    if method == "longrope":
        values.update(short_factor=data.draw(wild_lists), long_factor=data.draw(wild_lists))
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            result = RopeScaling(method, **values).frequencies(8, draw("rope_theta"))
    except RopeScalingError:
        return
    assert np.all(np.isfinite(result.inv_freq)) and np.all(result.inv_freq > 0)
    assert 0 < result.attention_factor < math.inf
