"""Losses in one pass and by windows: against transformers, and after the scaling changes."""

from __future__ import annotations

import tracemalloc
from contextlib import closing

import numpy as np
import pytest

from yarn_gguf import DynamicScaling, Llama, RopeScaling, RopeScalingError, YarnGGUFError
from yarn_gguf.evaluate.reading.cross_entropy import cross_entropy
from yarn_gguf.evaluate.reading.loglikelihood import Scorer
from yarn_gguf.evaluate.reading.losses import token_losses, window_ends, window_losses
from yarn_gguf.evaluate.statistics.positions import position_ranges


def torch_losses(smollm2_torch, tokens: list[int], **rope) -> np.ndarray:
    logits = smollm2_torch(tokens, **rope)
    losses = []
    for row, target in zip(logits, tokens[1:], strict=False):  # the last row predicts no token
        losses.append(np.logaddexp.reduce(row.astype(np.float64)) - row[target])
    return np.array(losses)


YARN = {"rope_type": "yarn", "rope_theta": 100000.0}


@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0])
def test_losses_of_one_pass_are_those_of_transformers(
    exact_llama, smollm2_torch, prose_tokens, factor
) -> None:
    tokens = prose_tokens[:400]
    exact_llama.set_rope_scaling(RopeScaling("yarn", factor) if factor > 1 else "none")
    theirs = torch_losses(smollm2_torch, tokens, **(YARN | {"factor": factor} if factor > 1 else {}))
    np.testing.assert_allclose(token_losses(exact_llama, tokens), theirs, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0])
def test_perplexity_beyond_the_trained_context_is_that_of_transformers(
    smollm2_f32, smollm2_torch, prose_tokens, factor
) -> None:
    """In each range of 2048 positions, to 1e-3; the trained context is 8192."""
    tokens, edges = prose_tokens[:10240], range(0, 10241, 2048)
    theirs = torch_losses(smollm2_torch, tokens, **(YARN | {"factor": factor} if factor > 1 else {}))
    scaling = RopeScaling("yarn", factor) if factor > 1 else "none"
    with closing(
        Llama(smollm2_f32, n_ctx=10240, type_k=0, type_v=0, rope_scaling=scaling, verbose=False)
    ) as llama:
        ours = token_losses(llama, tokens)
    found, expected = (
        [each.perplexity for each in position_ranges([losses], edges)] for losses in (ours, theirs)
    )
    print(f"x{factor:g}: {found} against {expected}")
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_loss_of_logits_is_that_in_float64_however_large_they_are(threads: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 100)).astype(np.float32) * np.float32([[1], [1000]] * 20)
    targets = rng.integers(0, 100, 40)
    wide = logits.astype(np.float64)
    expected = np.logaddexp.reduce(wide, axis=1) - wide[np.arange(40), targets]
    np.testing.assert_allclose(cross_entropy(logits, targets, threads), expected, rtol=1e-6, atol=1e-6)


def test_losses_take_the_memory_of_one_batch_of_logits(fast_llama, prose_tokens) -> None:
    """A batch has 128 tokens; the logits of all 512 would take four times as much."""
    token_losses(fast_llama, prose_tokens[:128])
    tracemalloc.start()
    token_losses(fast_llama, prose_tokens[:512])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2 * 128 * fast_llama.n_vocab() * 4


@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("parallel", [1, 3])
def test_losses_by_windows_are_those_of_transformers(
    exact_llama, smollm2_torch, prose_tokens, parallel, factor
) -> None:
    """Windows of 128 tokens by strides of 32, over 250 tokens. The last 26 are less than a stride."""
    tokens, theirs_of = prose_tokens[:250], YARN | {"factor": factor} if factor > 1 else {}
    exact_llama.set_rope_scaling(RopeScaling("yarn", factor) if factor > 1 else "none")
    got = window_losses(exact_llama, tokens, 128, window_ends(250, 128, 32), parallel)
    ends = (128, 160, 192, 224)
    theirs = [torch_losses(smollm2_torch, tokens[end - 128 : end], **theirs_of) for end in ends]
    theirs[1:] = [each[-32:] for each in theirs[1:]]
    np.testing.assert_allclose(got, np.concatenate(theirs), atol=2e-3)


def test_a_window_as_long_as_the_text_is_one_pass(fast_llama, prose_tokens) -> None:
    fast_llama.set_rope_scaling(RopeScaling("yarn", 4.0))
    tokens = prose_tokens[:256]
    assert np.array_equal(
        window_losses(fast_llama, tokens, 256, window_ends(256, 256, 64)), token_losses(fast_llama, tokens)
    )


@pytest.mark.parametrize("policy", ["growth", "request"])
def test_a_window_under_dynamic_scaling_has_the_s_of_its_policy(
    smollm2_q8, fast_llama, prose_tokens, policy: str
) -> None:
    """Under "growth", s grows from its first token to its last. Under "request", s is that of its length."""
    tokens, scaling = (
        prose_tokens[:250],
        DynamicScaling.of("yarn", policy=policy, original_max_position_embeddings=64),
    )
    fast_llama.set_rope_scaling(scaling)
    found = window_losses(fast_llama, tokens, 250, window_ends(250, 250, 64))
    with closing(Llama(smollm2_q8, rope_scaling=scaling, n_ctx=250, n_batch=128, verbose=False)) as alone:
        np.testing.assert_allclose(found, token_losses(alone, tokens), atol=2e-2)
        alone.set_rope_scaling(RopeScaling("yarn", 250 / 64, original_max_position_embeddings=64))
        is_static = np.allclose(found, token_losses(alone, tokens), atol=2e-2)
    assert is_static is (policy == "request")


def test_every_window_begins_with_bos_if_the_model_asks_for_it(fast_llama, prose_tokens, monkeypatch) -> None:
    monkeypatch.setattr(fast_llama._model, "add_bos_token", lambda: True)
    bos = fast_llama.token_bos()
    tokens = [bos, *prose_tokens[:150]]
    got = window_losses(fast_llama, tokens, 128, window_ends(151, 128, 16))
    expected = token_losses(fast_llama, [bos, *tokens[17:144]])[-16:]
    np.testing.assert_allclose(got[127:], expected, atol=2e-3)


def test_windows_leave_the_model_s_own_cache_alone(fast_llama, prose_tokens) -> None:
    token_losses(fast_llama, prose_tokens[:64])
    window_losses(fast_llama, prose_tokens[:64], 32, window_ends(64, 32, 16))
    assert fast_llama.n_tokens == 64


@pytest.mark.parametrize(("window", "stride"), [(64, 64), (64, 0), (128, 32)])
def test_windows_that_do_not_fit_are_refused(window: int, stride: int) -> None:
    with pytest.raises(YarnGGUFError, match=f"window of {window} tokens by strides of {stride}"):
        window_ends(100, window, stride)


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("yarn", 4.0),
        RopeScaling("linear", 2.0),
        RopeScaling("ntk", 2.0),
        RopeScaling("yarn", 2.0, ramp="rotations"),
        DynamicScaling.of("yarn", original_max_position_embeddings=64),
        "none",
    ],
    ids=str,
)
def test_a_scaling_set_later_is_that_of_a_new_model(exact_llama, smollm2_f32, prose_tokens, scaling) -> None:
    tokens = prose_tokens[:200]
    with closing(
        Llama(smollm2_f32, n_ctx=512, type_k=0, type_v=0, verbose=False, rope_scaling=scaling)
    ) as new:
        expected = token_losses(new, tokens)
    exact_llama.set_rope_scaling(RopeScaling("linear", 8.0))
    exact_llama.set_rope_scaling(scaling)
    assert exact_llama.n_tokens == 0
    np.testing.assert_allclose(token_losses(exact_llama, tokens), expected, atol=2e-3)


def test_a_refused_scaling_leaves_the_last_one(fast_llama, prose_tokens) -> None:
    fast_llama.set_rope_scaling("yarn")
    before = token_losses(fast_llama, prose_tokens[:64])
    with pytest.raises(RopeScalingError, match="inv_freq"):
        fast_llama.set_rope_scaling(RopeScaling("explicit", inv_freq=(1.0,)))
    assert fast_llama.rope_scaling.method == "yarn"
    assert np.array_equal(token_losses(fast_llama, prose_tokens[:64]), before)


def test_a_separate_context_has_the_longrope_factors_of_its_length(fast_llama, monkeypatch) -> None:
    given = []
    monkeypatch.setattr(
        "yarn_gguf.run.context_scaling.set_rope_frequencies",
        lambda context, *table: given.append(table[0][0]),
    )
    factors = {"short_factor": (1.0,) * 32, "long_factor": (2.0,) * 32}
    scaling = RopeScaling("longrope", 4.0, original_max_position_embeddings=512, **factors)
    fast_llama.set_rope_scaling(scaling)
    for length in (256, 1024):
        fast_llama.make_context(length).close()
    short, long = given[1:]
    assert short == 2 * long
    for length in (512, 513):  # of the longest input; the cache is larger
        Scorer(fast_llama, length).close()
    assert given[3:] == [short, long]
