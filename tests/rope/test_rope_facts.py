"""Facts about every method of RopeScaling: what it keeps, what it scales, and by how much."""

import dataclasses
import math

import numpy as np
import pytest
import reference
from hypothesis import given
from scalings import (
    LLAMA_2,
    YARN_LLAMA_2,
    assert_same,
    by_parts_cases,
    factors,
    make,
    models,
    often,
)

from yarn_gguf.rope.formulas import ggml_attn_factor, ntk_base, yarn_mscale
from yarn_gguf.rope.scaling import METHODS, RopeScaling


@pytest.mark.parametrize("method", METHODS)
def test_factor_one_equals_unscaled_rope(method):
    # longrope's lists are all ones here, and its factor sets only the temperature
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
    # a wider ramp leaves fewer dimensions alone, and wholly interpolates fewer
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
    # b' = 10000 * 4^(128/126), which is the freq_base for an unpatched llama.cpp
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


def test_ggml_attn_factor_cancels_the_factor_of_the_op_itself():
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
def test_factor_one_interpolates_nothing_except_by_the_ramp(method):
    # by-parts and yarn know from the ramp, whatever the factor; other methods compute back from frequencies
    interpolation = make(method, factor=1.0).interpolation(**LLAMA_2)
    if method in ("by-parts", "yarn"):
        assert np.array_equal(interpolation, make(method, factor=2.0).interpolation(**LLAMA_2))
    else:
        assert np.all(interpolation == 0)


@pytest.mark.parametrize("context", [16, 128])
def test_a_ramp_whose_ends_coincide_is_a_step(context):
    # d = 2: low and high are both clamped to 0, or to d - 1 = 1. A division by zero raises here.
    scaling = RopeScaling("yarn", 4.0, context)
    with np.errstate(all="raise"):
        actual = scaling.frequencies(2, 100.0).inv_freq
    expected = reference.by_parts_frequencies(2, 100.0, 4.0, context, reference.index_ramp)
    assert_same(actual, expected)
    assert actual[0] in (1.0, 0.25)


def test_ramp_bounds_that_coincide_within_the_table_give_a_step():
    # Both bounds are clamped to 0. The first dimension turns less than once within 6 tokens, and is left
    # alone, as in the reference code and in transformers.
    scaling = RopeScaling("yarn", 4.0, 6, beta_fast=4.0)
    low, high = (reference.index_of_rotations(n, 8, 10000.0, 6) for n in (4.0, 1.0))
    assert low < 0 and math.ceil(high) == 0
    assert scaling.interpolation(8, 10000.0).tolist() == [0, 1, 1, 1]


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
