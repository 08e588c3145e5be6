"""Requests to a Llama with a draft model: refused draft tokens leave no trace."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from libraries import relative_error
from llamas import TOKENS, answer, tiny
from reading import read

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
