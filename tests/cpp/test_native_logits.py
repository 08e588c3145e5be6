"""The patched library's logits on SmolLM2, against the unpatched library and against torch."""

import math

import numpy as np
import pytest
from libraries import UNPATCHED, logits, patched, relative_error

from yarn_gguf import RopeScaling, extend
from yarn_gguf.gguf.edit import change_keys
from yarn_gguf.gguf.header import ValueType, key_value, read_header
from yarn_gguf.native.cache_types import CACHE_TYPES

NO_SCALING, YARN_SCALING = 0, 2  # enum llama_rope_scaling_type
PLAIN_ATTENTION = {"flash_attn_type": 0}  # enum llama_flash_attn_type
FLASH_ATTENTION = {"flash_attn_type": 1}
YARN = {"rope_scaling_type": YARN_SCALING, "rope_freq_scale": 0.25, "yarn_orig_ctx": 8192}
F32_CACHE = {"type_k": CACHE_TYPES["f32"], "type_v": CACHE_TYPES["f32"], **PLAIN_ATTENTION}
Q8_0_CACHE = {"type_k": CACHE_TYPES["q8_0"], "type_v": CACHE_TYPES["q8_0"], **FLASH_ATTENTION}


def largest_shift_error(library, model, tokens, round_trips, **context) -> float:
    """Return the largest change of a logit when the cache is shifted to and fro."""
    still = logits(library, model, tokens, **context)[-1]
    return float(np.abs(logits(library, model, tokens, shifts=round_trips, **context)[-1] - still).max())


@pytest.mark.parametrize(
    ("count", "context"),
    [
        (600, {}),  # more than one ubatch
        (200, PLAIN_ATTENTION),
        (200, Q8_0_CACHE),
        (200, F32_CACHE),
    ],
    ids=["default", "no-flash", "q8_0-cache", "f32-cache"],
)
def test_without_scaling_logits_equal_the_unpatched_librarys_bit_for_bit_but_for_the_angles(
    smollm2_q8, prose_tokens, count, context
):
    """The rope op uses upstream's arithmetic here, since our angles are the exact ones."""
    tokens = prose_tokens[:count]
    ours, theirs = (
        logits(library, smollm2_q8, tokens, upstream_rope=True, **context)
        for library in (patched(), UNPATCHED)
    )
    assert np.array_equal(ours, theirs)


def divergence(expected: np.ndarray, got: np.ndarray) -> float:
    """Return the mean of KL(expected || got) over positions, in nats."""
    log_p, log_q = (
        each - np.logaddexp.reduce(each, axis=1, keepdims=True)
        for each in (expected.astype(np.float64), got.astype(np.float64))
    )
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def test_without_scaling_quantized_logits_are_as_far_from_float32_as_the_unpatched_librarys(
    smollm2_path, smollm2_torch, prose_tokens
):
    """Other last bits of an angle change how activations are rounded. Neither result is the better one."""
    tokens = prose_tokens[:300]
    exact = smollm2_torch(tokens)
    ours, theirs = (logits(library, smollm2_path, tokens) for library in (patched(), UNPATCHED))
    assert 1e-4 < divergence(theirs, ours) < 1e-2
    assert 0.67 < divergence(exact, ours) / divergence(exact, theirs) < 1.5


def test_without_scaling_float32_logits_are_the_unpatched_librarys_but_for_rounding(
    smollm2_f32, prose_tokens
):
    tokens = prose_tokens[:300]
    ours, theirs = (logits(library, smollm2_f32, tokens) for library in (patched(), UNPATCHED))
    assert divergence(theirs, ours) < 2e-6


def test_default_yarn_logits_equal_the_unpatched_librarys_bit_for_bit_but_for_the_angles(
    smollm2_q8, prose_tokens
):
    tokens = prose_tokens[:300]
    assert np.array_equal(
        logits(patched(), smollm2_q8, tokens, upstream_rope=True, **YARN),
        logits(UNPATCHED, smollm2_q8, tokens, **YARN),
    )


@pytest.mark.parametrize("multiplier", [0.8, 1.0, 1.25])
def test_callers_temperature_gives_the_logits_that_torch_predicts(
    smollm2_f32, smollm2_torch, prose_tokens, multiplier
):
    """ggml's operand multiplies 0.1 ln(s) + 1. transformers' attention_factor is the product."""
    tokens = prose_tokens[:400]
    total = multiplier * (0.1 * math.log(4) + 1)
    expected = smollm2_torch(tokens, rope_type="yarn", factor=4.0, attention_factor=total)
    got = logits(patched(), smollm2_f32, tokens, yarn_attn_factor=multiplier, **YARN, **F32_CACHE)
    assert relative_error(got, expected) < 1e-4


def test_unpatched_library_ignores_the_callers_temperature(smollm2_q8, prose_tokens):
    """The reason for the first patch, and proof that the tests above can fail."""
    tokens = prose_tokens[:100]
    plain, hot = (
        logits(UNPATCHED, smollm2_q8, tokens, yarn_attn_factor=value, **YARN) for value in (1.0, 2.0)
    )
    assert np.array_equal(plain, hot)


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        (RopeScaling("yarn", factor=4, beta_fast=8), {"yarn_beta_fast": 8.0}),
        (RopeScaling("yarn", factor=4, beta_slow=2), {"yarn_beta_slow": 2.0}),
        (RopeScaling("yarn", factor=4, attention_factor=0.1 * math.log(4) + 1), {"yarn_attn_factor": 1.0}),
    ],
    ids=["beta_fast", "beta_slow", "temperature"],
)
def test_a_value_in_the_file_equals_the_same_value_from_the_caller_bit_for_bit(
    smollm2_q8, tmp_path, prose_tokens, scaling, context
):
    tokens = prose_tokens[:300]
    extended = extend(smollm2_q8, scaling, output=tmp_path / "extended.gguf").path
    from_file = logits(patched(), extended, tokens)
    from_caller = logits(patched(), smollm2_q8, tokens, **YARN | context)
    assert np.array_equal(from_file, from_caller)
    if "yarn_attn_factor" not in context:
        assert not np.array_equal(from_file, logits(patched(), smollm2_q8, tokens, **YARN))


def test_temperature_in_the_file_gives_the_logits_that_torch_predicts(
    smollm2_f32, smollm2_torch, tmp_path, prose_tokens
):
    """yarn_attn_factor is the whole temperature. attn_factor beside it is not multiplied in again."""
    tokens = prose_tokens[:400]
    scaling = RopeScaling("yarn", factor=4, attention_factor=1.0)
    extended = extend(smollm2_f32, scaling, output=tmp_path / "extended.gguf").path
    expected = smollm2_torch(tokens, rope_type="yarn", factor=4.0, attention_factor=1.0)
    assert relative_error(logits(patched(), extended, tokens, **F32_CACHE), expected) < 1e-4
    assert relative_error(logits(UNPATCHED, extended, tokens, **F32_CACHE), expected) < 1e-4


def test_attn_factor_beside_a_temperature_is_not_multiplied_in(smollm2_q8, tmp_path, prose_tokens):
    """yarn_attn_factor is the whole temperature even if it equals the default."""
    tokens, path = prose_tokens[:100], tmp_path / "extended.gguf"
    extend(smollm2_q8, RopeScaling("yarn", factor=4), output=path)
    expected = logits(patched(), path, tokens)
    key = "llama.rope.scaling.attn_factor"
    change_keys(read_header(path), [key_value(key, ValueType.FLOAT32, 1.5)], [key])
    assert np.array_equal(logits(patched(), path, tokens), expected)


def test_caller_goes_before_the_file(smollm2_q8, tmp_path, prose_tokens):
    tokens = prose_tokens[:100]
    scaling = RopeScaling("yarn", factor=2, beta_fast=8, attention_factor=1.5)
    extended = extend(smollm2_q8, scaling, output=tmp_path / "extended.gguf").path
    caller = YARN | {"yarn_beta_fast": 32.0, "yarn_attn_factor": 1.0}
    assert np.array_equal(
        logits(patched(), extended, tokens, **caller), logits(patched(), smollm2_q8, tokens, **caller)
    )


def test_a_caller_who_asks_for_no_scaling_gets_the_unscaled_model(smollm2_q8, tmp_path, prose_tokens):
    tokens = prose_tokens[:100]
    scaling = RopeScaling("yarn", factor=4, attention_factor=1.5)
    extended = extend(smollm2_q8, scaling, output=tmp_path / "extended.gguf").path
    unscaled = logits(patched(), extended, tokens, rope_scaling_type=NO_SCALING)
    assert np.array_equal(unscaled, logits(patched(), smollm2_q8, tokens))


@pytest.mark.parametrize("cache", [{}, Q8_0_CACHE], ids=["f16", "q8_0"])
def test_context_shifts_under_yarn_cost_no_more_than_without_scaling(smollm2_q8, prose_tokens, cache):
    """Six round trips."""
    tokens = prose_tokens[:300]
    unscaled = largest_shift_error(patched(), smollm2_q8, tokens, 6, **cache)
    assert largest_shift_error(patched(), smollm2_q8, tokens, 6, **YARN, **cache) <= 2 * unscaled


def test_context_shifts_corrupt_the_unpatched_librarys_cache(smollm2_q8, prose_tokens):
    """The reason for patch 0010, and proof that the test above can fail."""
    tokens = prose_tokens[:300]
    unscaled = largest_shift_error(UNPATCHED, smollm2_q8, tokens, 6)
    assert largest_shift_error(UNPATCHED, smollm2_q8, tokens, 6, **YARN) > 5 * unscaled
