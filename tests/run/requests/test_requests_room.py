"""Requests to a Llama: texts that do not fit into the context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from llamas import TOKENS, tiny

from yarn_gguf import YarnGGUFError
from yarn_gguf.run.llama import Llama, llama_cpp


def test_a_prompt_longer_than_the_context_is_refused_and_the_cache_stays(smollm2):
    first = smollm2.create_completion("Once upon a time", max_tokens=8, temperature=0)
    count = smollm2.n_tokens
    with pytest.raises(ValueError, match="exceed context window of 512"):
        smollm2.create_completion("word " * 600)
    with pytest.raises(ValueError, match="exceed context window of 512"):
        smollm2.create_chat_completion([{"role": "user", "content": "word " * 600}])
    with pytest.raises(YarnGGUFError, match="600 tokens do not fit"):
        smollm2.eval([5] * 600)
    with pytest.raises(YarnGGUFError, match="600 tokens do not fit"):
        smollm2.prefill([5] * 600)
    assert smollm2.n_tokens == count
    with pytest.raises(YarnGGUFError, match="600 tokens do not fit"):
        next(smollm2.generate([5] * 600))
    again = smollm2.create_completion("Once upon a time", max_tokens=8, temperature=0)
    assert again["choices"] == first["choices"]


def test_an_answer_fills_the_context_to_its_end_and_no_further(model_of):
    with closing(tiny(model_of("llama"), n_ctx=300)) as llama:  # the library rounds it up to 512
        tokens = []
        with pytest.raises(YarnGGUFError, match="1 tokens do not fit: 512 of 512"):
            tokens.extend(iter_into(llama.generate(TOKENS[:290], temp=0.0), tokens))
        assert len(tokens) == 512 - 290 + 1
        assert llama.n_tokens == 512


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_the_context_cuts_within_a_letter_keeps_the_letters_before(smollm2_q8, stream):
    """A completion goes on beyond max_tokens until a letter of several bytes is whole. This one never is."""
    with closing(Llama(smollm2_q8, n_ctx=256, n_threads=2, verbose=False)) as llama:
        prompt = llama.tokenize(b"word " * 245)
        letter, half = llama.tokenize(b"a")[0], llama.tokenize("😀".encode())[0]

        def write(tokens: np.ndarray, scores: np.ndarray) -> np.ndarray:
            barred = np.full_like(scores, -np.inf)
            barred[half if len(tokens) > 252 else letter] = 0
            return barred

        processors = llama_cpp.LogitsProcessorList([write])
        answer = llama.create_completion(prompt, max_tokens=None, logits_processor=processors, stream=stream)
        choices = [part["choices"][0] for part in (answer if stream else [answer])]
        assert "".join(each["text"] for each in choices) == "a" * (253 - len(prompt))
        assert choices[-1]["finish_reason"] == "length"
        assert llama.n_tokens == 256
        with pytest.raises(YarnGGUFError, match="1 tokens do not fit"):
            list(llama.generate(prompt, logits_processor=processors))


def iter_into(source: Iterator[int], target: list[int]) -> list[int]:
    """Append each item to `target` at once, so that an exception loses none."""
    for each in source:
        target.append(each)
    return []
