"""Log-likelihoods of continuations: against transformers, and shared prefixes are read once."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from questions import request_lines

from yarn_gguf import DynamicScaling, Llama, RopeScaling, YarnGGUFError
from yarn_gguf.evaluate.reading.loglikelihood import Score, Scorer, encode_pair
from yarn_gguf.evaluate.reading.losses import token_losses
from yarn_gguf.evaluate.reading.sequences import SequenceContext


@pytest.fixture(scope="module")
def exact_llama(smollm2_f32):
    """Batches of 32 tokens: the questions do not fit into one."""
    with closing(Llama(smollm2_f32, n_ctx=512, n_batch=32, type_k=0, type_v=0, verbose=False)) as llama:
        yield llama


@pytest.fixture(scope="module")
def fast_llama(smollm2_q8):
    with closing(Llama(smollm2_q8, n_ctx=512, flash_attn=True, verbose=False)) as llama:
        yield llama


@pytest.fixture
def pairs(exact_llama) -> list[tuple[list[int], list[int]]]:
    requests = [each["request"] for each in request_lines()]
    return [encode_pair(exact_llama, each["context"], each["continuation"]) for each in requests]


def score(llama: Llama, pairs: list[tuple[list[int], list[int]]]) -> list[Score]:
    with closing(Scorer(llama, max(len(a) + len(b) for a, b in pairs))) as scorer:
        return scorer.score(pairs)


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_loglikelihoods_are_those_of_transformers(exact_llama, smollm2_torch, pairs, factor: float) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 100000.0, "factor": factor} if factor > 1 else {}
    exact_llama.set_rope_scaling(RopeScaling("yarn", factor) if yarn else "none")
    for (context, continuation), ours in zip(pairs, score(exact_llama, pairs), strict=True):
        logits = smollm2_torch(context + continuation, **yarn)[len(context) - 1 : -1].astype(np.float64)
        chosen = logits[np.arange(len(continuation)), continuation]
        theirs = (chosen - np.logaddexp.reduce(logits, axis=1)).sum()
        assert ours.loglikelihood == pytest.approx(theirs, abs=1e-3)
        assert ours.greedy == (logits.argmax(axis=1).tolist() == continuation)


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """The number of tokens in each batch that is read."""
    counts: list[int] = []
    decode = SequenceContext.decode
    monkeypatch.setattr(
        SequenceContext,
        "decode",
        lambda self, tokens, *rest: counts.append(len(tokens)) or decode(self, tokens, *rest),
    )
    return counts


def prefixes(pairs: list[tuple[list[int], list[int]]]) -> set[tuple[int, ...]]:
    return {tuple((a + b)[:end]) for a, b in pairs for end in range(1, len(a) + len(b))}


def test_shared_prefixes_are_read_once(fast_llama, pairs, read) -> None:
    fast_llama.set_rope_scaling("none")
    score(fast_llama, pairs)
    assert read == [len(prefixes(pairs))]


def test_a_trunk_stays_in_the_cache_between_batches(exact_llama, pairs, read) -> None:
    exact_llama.set_rope_scaling("none")
    score(exact_llama, pairs)
    assert len(read) > 3
    assert (
        sum(read) < len(prefixes(pairs)) + 40
    )  # a question may be read in two batches, the examples only in one


@pytest.mark.parametrize("policy", ["growth", "request"])
def test_a_text_beyond_the_original_context_has_a_dynamic_factor_of_its_own(
    exact_llama, prose_tokens, policy: str
) -> None:
    """A longer text, scored beside it or before it, must not give it its factor."""
    lengths = (58, 90, 150, 40)
    pairs = [(prose_tokens[:length], prose_tokens[length : length + 5]) for length in lengths]
    exact_llama.set_rope_scaling(
        DynamicScaling.of("yarn", policy=policy, original_max_position_embeddings=64)
    )
    for (context, continuation), ours in zip(pairs, score(exact_llama, pairs), strict=True):
        losses = token_losses(exact_llama, context + continuation)
        assert ours.loglikelihood == pytest.approx(-losses[len(context) - 1 :].sum(), abs=2e-2)


def test_a_pair_that_does_not_fit_or_has_no_context_is_refused(exact_llama) -> None:
    with closing(Scorer(exact_llama, 8)) as scorer:
        with pytest.raises(YarnGGUFError, match="context of 6 tokens and its continuation of 3 do not fit 8"):
            scorer.score([([1] * 6, [2] * 3)])
        with pytest.raises(YarnGGUFError, match="a context needs at least one token"):
            scorer.score([([], [2])])


def test_spaces_belong_to_the_continuation_and_an_empty_context_is_the_prefix_token(fast_llama) -> None:
    whole = fast_llama.tokenize(b"The cat sat", add_bos=False)
    assert encode_pair(fast_llama, "The cat ", "sat") == (whole[:2], whole[2:])
    assert encode_pair(fast_llama, "", "The cat sat") == ([fast_llama.token_bos()], whole)
