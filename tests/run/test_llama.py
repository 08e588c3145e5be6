"""yarn_gguf.Llama: a drop-in for llama_cpp.Llama whose scaling takes effect."""

import math
from contextlib import closing

import numpy as np
import pytest
from libraries import relative_error
from reading import read

from yarn_gguf import (
    DynamicScaling,
    GGUFError,
    ModelLoadError,
    RopeScaling,
    RopeScalingError,
    YarnGGUFError,
    extend,
)
from yarn_gguf.evaluate.reading.losses import token_losses
from yarn_gguf.evaluate.statistics.positions import bucket_perplexities
from yarn_gguf.run.llama import Llama, llama_cpp

EXTENSIONS = [
    RopeScaling("linear", factor=2),
    RopeScaling("ntk", factor=2),
    RopeScaling("by-parts", factor=2),
    RopeScaling("yarn", factor=2),
    RopeScaling("yarn", factor=2, beta_fast=16, beta_slow=2, attention_factor=1.25),
]


def logits(model, tokens, **kwargs) -> np.ndarray:
    """Return the logits of `tokens` in a new Llama: float32 (tokens, n_vocab)."""
    llama = Llama(model, n_ctx=256, verbose=False, **kwargs)
    try:
        return read(llama, tokens)
    finally:
        llama.close()


@pytest.fixture(scope="module")
def tokens(prose_tokens) -> list[int]:
    return prose_tokens[:150]


@pytest.mark.parametrize("scaling", EXTENSIONS, ids=lambda s: f"{s.method}{s.attention_factor or ''}")
def test_a_scaling_given_to_llama_equals_the_same_scaling_in_the_file(smollm2_q8, tmp_path, tokens, scaling):
    extended = extend(smollm2_q8, scaling, output=tmp_path / "extended.gguf").path
    given, from_file = logits(smollm2_q8, tokens, rope_scaling=scaling), logits(extended, tokens)
    assert np.abs(given - from_file).max() < 1e-2  # the factor is rounded to float32 in another place
    assert not np.allclose(given, logits(smollm2_q8, tokens), atol=0.5)


@pytest.mark.parametrize("scaling", EXTENSIONS, ids=lambda s: f"{s.method}{s.attention_factor or ''}")
def test_the_name_none_undoes_the_scaling_of_the_file(smollm2_q8, tmp_path, tokens, scaling):
    extended = extend(smollm2_q8, scaling, output=tmp_path / "extended.gguf").path
    assert np.array_equal(logits(extended, tokens, rope_scaling="none"), logits(smollm2_q8, tokens))


def test_a_methods_name_takes_the_factor_that_makes_the_context_fit(smollm2_q8):
    llama = Llama(smollm2_q8, n_ctx=12288, rope_scaling="yarn", vocab_only=False, verbose=False)
    params = llama.context_params
    assert params.rope_freq_scale == pytest.approx(8192 / 12288)
    assert params.yarn_orig_ctx == 8192
    llama.close()


def test_without_rope_scaling_nothing_overrides_the_file(smollm2_q8):
    llama = Llama(smollm2_q8, verbose=False)
    params, defaults = llama.context_params, llama_cpp.llama_context_default_params()
    for name in (
        "yarn_attn_factor",
        "yarn_beta_fast",
        "yarn_beta_slow",
        "yarn_ext_factor",
        "rope_freq_scale",
    ):
        assert getattr(params, name) == getattr(defaults, name)
    llama.close()


def test_the_arguments_of_llama_cpp_reach_the_library(smollm2_q8, tokens):
    arguments = {"rope_scaling_type": 2, "rope_freq_scale": 0.5, "yarn_orig_ctx": 8192}
    own = logits(smollm2_q8, tokens, rope_scaling=RopeScaling("yarn", factor=2))
    assert np.array_equal(logits(smollm2_q8, tokens, **arguments), own)
    assert not np.array_equal(logits(smollm2_q8, tokens, yarn_attn_factor=1.5, **arguments), own)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rope_scaling": "yarn", "yarn_beta_fast": 8.0}, "give rope_scaling or yarn_beta_fast, not both"),
        ({"rope_scaling": "ntk-by-magic"}, "rope_scaling must be one of none, linear"),
        ({"rope_scaling": "yarn", "n_ctx": 0}, "give n_ctx"),
        (
            {"rope_scaling": RopeScaling("longrope", 2, 8192, short_factor=(1.0,), long_factor=(2.0,))},
            "short_factor must be 32 numbers",
        ),
    ],
)
def test_a_scaling_that_makes_no_sense_is_refused(smollm2_q8, kwargs, message):
    with pytest.raises(RopeScalingError, match=message):
        Llama(smollm2_q8, verbose=False, **kwargs)


@pytest.mark.parametrize("name", ["type_k", "type_v"])
def test_a_cache_type_that_would_end_the_process_is_refused(smollm2_q8, name):
    with pytest.raises(ModelLoadError, match=rf"{name} must be .*f16 = 1.*, got 999"):
        Llama(smollm2_q8, verbose=False, **{name: 999})


def test_dynamic_scaling_on_another_base_is_refused(smollm2_q8):
    """It would start from the base of the NTK-aware scaling that the context was made with."""
    with closing(Llama(smollm2_q8, rope_scaling=RopeScaling("ntk", 4.0), verbose=False)) as llama:
        with pytest.raises(RopeScalingError, match=r"rotary base of \d+, where the model's is 100000"):
            llama.set_rope_scaling("dynamic-yarn")
        assert llama.rope_scaling.method == "ntk"
        llama.set_rope_scaling("none")


@pytest.mark.parametrize(("n_ctx", "n_batch"), [(-1, 512), (2 * 10**7, 512), (512, 0)])
def test_a_context_that_cannot_be_made_is_one_exception(smollm2_q8, n_ctx, n_batch):
    with pytest.raises(ModelLoadError, match=r"failed to initialize the context|must be a whole number from"):
        Llama(smollm2_q8, n_ctx=n_ctx, n_batch=n_batch, verbose=False)


def test_exact_dynamic_scaling_takes_a_quantized_v_but_no_quantized_k(smollm2_q8, tokens):
    """K is float32 by default. A quantized V needs flash attention."""
    exact = {"rope_scaling": DynamicScaling.of("yarn", policy="exact", original_max_position_embeddings=64)}
    expected = logits(smollm2_q8, tokens, **exact)
    assert 0 < relative_error(logits(smollm2_q8, tokens, type_v=8, **exact), expected) < 0.05
    with pytest.raises(RopeScalingError, match="a K cache of type f32"):
        Llama(smollm2_q8, type_k=8, type_v=8, verbose=False, **exact)


def test_more_tokens_than_fit_are_refused_before_any_is_read(smollm2_q8, tokens):
    llama = Llama(smollm2_q8, n_ctx=256, verbose=False)
    llama.prefill(tokens)
    with pytest.raises(YarnGGUFError, match="150 tokens do not fit: 150 of 256 are used"):
        llama.prefill(tokens)
    with pytest.raises(YarnGGUFError, match="do not fit"):
        next(llama.read_logits(tokens))
    assert llama.n_tokens == 150
    llama.close()


def test_a_use_of_a_closed_llama_is_refused(smollm2_q8):
    llama = Llama(smollm2_q8, verbose=False)
    llama.close()
    llama.close()
    for use in (lambda: llama("hi"), lambda: llama.tokenize(b"hi"), lambda: llama.eval([1]), llama.n_ctx):
        with pytest.raises(YarnGGUFError, match="this Llama was closed"):
            use()


def test_a_missing_file_is_refused_with_its_name(tmp_path):
    with pytest.raises((GGUFError, OSError), match=r"none\.gguf"):
        Llama(tmp_path / "none.gguf")


def test_losses_equal_those_of_torch(smollm2_f32, smollm2_torch, tokens):
    logits_of_torch = smollm2_torch(tokens)
    shifted = logits_of_torch - logits_of_torch.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    expected = -log_probabilities[np.arange(len(tokens) - 1), tokens[1:]]
    cache = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    llama = Llama(smollm2_f32, n_ctx=256, n_batch=64, verbose=False, **cache)
    seen = []
    losses = token_losses(llama, tokens, lambda done, total: seen.append((done, total)))
    llama.close()
    assert losses == pytest.approx(expected, abs=2e-4)
    assert seen == [(64, 150), (128, 150), (150, 150)]
    assert bucket_perplexities(losses, [0, 75, 149]) == pytest.approx(
        [math.exp(expected[:75].mean()), math.exp(expected[75:].mean())], rel=1e-4
    )


def test_reading_twice_starts_from_an_empty_cache(smollm2_q8, tokens):
    llama = Llama(smollm2_q8, n_ctx=256, verbose=False)
    once, again = (token_losses(llama, tokens) for _ in range(2))
    llama.close()
    assert np.array_equal(once, again)


def test_prefill_then_completion_reads_the_prompt_once(smollm2_q8, tokens):
    llama = Llama(smollm2_q8, n_ctx=256, n_batch=64, verbose=False)
    expected = llama.create_completion(tokens, max_tokens=8, temperature=0.0)["choices"][0]["text"]
    llama.reset()
    seen = []
    llama.prefill(tokens, lambda done, total: seen.append(done))
    assert seen == [64, 128, 150]
    read = []
    evaluate = llama.eval
    llama.eval = lambda tokens: (read.append(len(tokens)), evaluate(tokens))
    assert llama.create_completion(tokens, max_tokens=8, temperature=0.0)["choices"][0]["text"] == expected
    assert max(read) <= 1
    llama.close()
