"""RopeScaling against two independent witnesses: tests/helpers/reference.py, and transformers."""

import dataclasses
import math

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from scalings import (
    LLAMA_2,
    YARN_LLAMA_2,
    assert_same,
    by_parts_cases,
    contexts,
    factors,
    index_bounds,
    llama3_scalings,
    longrope_cases,
    make,
    models,
    often,
    sometimes,
)

from yarn_gguf.rope.formulas import ggml_attn_factor
from yarn_gguf.rope.scaling import RopeScaling

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
    transformers.logging.set_verbosity_error()  # it warns about every factor other than length / L
    yield frequencies
    transformers.logging.set_verbosity(verbosity)


def assert_same_in_float32(actual, expected, model, ramp_ulps=0.0):
    """Compare to within float32's rounding: about 1e-6, more for a large base or factor.

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
    """Return the ramp's error in ulps: half an ulp of a bound that is no whole number, over its width."""
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
    # transformers computes the ramp from theta_i, with theta_i's error, and the ramp may be steep
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


# Golden values of transformers 5.23.0 and torch 2.13.0+cpu, in float32, printed by
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
