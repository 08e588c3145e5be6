"""Requests to a Llama with a draft model: refused draft tokens leave no trace."""

from __future__ import annotations

import itertools
from contextlib import closing

import numpy as np
import pytest
from libraries import relative_error
from llamas import TOKENS, answer, tiny
from reading import read

from yarn_gguf import DynamicScaling
from yarn_gguf.run.llama import Llama
from yarn_gguf.session.session import open_session

PROMPT = TOKENS[:20]


def refused(tokens: np.ndarray, **_: object) -> np.ndarray:
    """Propose draft tokens that are not the answer's."""
    return np.arange(7, 15)


def cut_off(llama: Llama) -> list[int]:
    """Stop an answer to PROMPT with draft tokens that were not looked at. Return the tokens before these."""
    stream = llama.generate(PROMPT, temp=0)
    given = [next(stream) for _ in range(5)]
    stream.close()
    assert llama.n_tokens > len(PROMPT) + 4  # the draft tokens are cached still
    return [*PROMPT, *given[:-1]]


@pytest.mark.parametrize(
    ("arch", "settings"),
    [("llama", {"n_ubatch": 4}), ("llama", {"n_batch": 4}), ("mamba", {}), ("lfm2", {})],
    ids=["llama, longer than a ubatch", "llama, longer than a batch", "mamba", "lfm2"],
)
def test_a_draft_changes_no_token_of_the_answer(model_of, arch, settings):
    """It may be partly refused where the cache cannot be cut."""
    prompt, count = PROMPT, 60
    with closing(tiny(model_of(arch))) as llama:
        expected = answer(llama, prompt, count)

    def draft(tokens: np.ndarray, **_: object) -> np.ndarray:
        rest = [*prompt, *expected, *TOKENS[:9]][len(tokens) :][:8]
        return np.array([*rest[:3], (rest[3] + 1) % 256, *rest[4:]])

    with closing(tiny(model_of(arch), draft_model=draft, **settings)) as llama:
        assert answer(llama, prompt, count) == expected


@pytest.mark.parametrize("policy", ["growth", "request", "exact"])
@pytest.mark.parametrize("is_right", [True, False], ids=["accepted", "refused"])
def test_draft_tokens_move_no_factor_of_dynamic_scaling(model_of, policy, is_right):
    """The factors at each token, and the answer, are those without a draft."""
    scaling = DynamicScaling.of("yarn", policy=policy, original_max_position_embeddings=16)
    settings = {"rope_scaling": scaling, "type_k": 0, "type_v": 0, "n_ctx": 256}
    count = 90

    def answer_and_factors(llama: Llama) -> tuple[list[int], list[float]]:
        stream, tokens, factors = llama.generate(PROMPT, temp=0.0), [], []
        for token in itertools.islice(stream, count):
            tokens.append(token)
            factors.append(llama.dynamic_state.factor)
        return tokens, factors

    with closing(tiny(model_of("llama"), **settings)) as llama:
        expected, factors = answer_and_factors(llama)
    assert len({*factors}) > 5

    def draft(tokens: np.ndarray, **_: object) -> np.ndarray:
        drafts = [*PROMPT, *expected, *TOKENS[:9]][len(tokens) :][:8]
        return np.array(drafts if is_right else [(each + 1) % 256 for each in drafts])

    with closing(tiny(model_of("llama"), draft_model=draft, **settings)) as llama:
        got, got_factors = answer_and_factors(llama)
    assert got == expected
    assert [a for a, b in zip(got_factors, factors, strict=True) if a > b] == []


def test_a_session_has_no_refused_draft_tokens(model_of, tmp_path):
    path = tmp_path / "a.session"
    with closing(tiny(model_of("llama"), draft_model=refused)) as llama:
        with open_session(llama, path) as session:
            certain = cut_off(llama)
        assert session.tokens == certain


@pytest.mark.parametrize("go_on", [Llama.eval, Llama.prefill, read], ids=["eval", "prefill", "read_logits"])
def test_reading_goes_on_without_the_refused_draft_tokens(model_of, go_on):
    more = TOKENS[100:110]
    with closing(tiny(model_of("llama"), draft_model=refused)) as llama:
        certain = cut_off(llama)
        go_on(llama, more)
        assert llama.cached_text.tokens.tolist() == [*certain, *more]
        got = llama.scores[llama.n_tokens - 1].copy()
        llama.reset()
        llama.eval([*certain, *more])
        assert relative_error(got, llama.scores[llama.n_tokens - 1]) < 1e-4
