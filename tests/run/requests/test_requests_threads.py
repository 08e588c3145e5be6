"""Requests to a Llama: several threads, streams that wait, and chat handlers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from llamas import TOKENS, UBATCH, in_a_thread

from yarn_gguf import Cancelled, YarnGGUFError
from yarn_gguf.run.llama import Llama, llama_cpp


def test_threads_wait_for_one_another(smollm2):
    prompts = ["Once upon a time", "The king said:", "In the beginning", "def main():"]
    expected = [smollm2.create_completion(each, max_tokens=12, temperature=0) for each in prompts]
    results = {}

    def ask(prompt: str) -> None:
        results[prompt] = smollm2.create_completion(prompt, max_tokens=12, temperature=0)

    threads = [threading.Thread(target=ask, args=(each,)) for each in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = [results[each]["choices"][0]["text"] for each in prompts]
    assert texts == [each["choices"][0]["text"] for each in expected]


def test_a_stream_that_the_next_request_cuts_off_raises_cancelled(smollm2):
    expected = smollm2.create_completion("The king said:", max_tokens=8, temperature=0)
    stream = smollm2.create_completion("Once upon a time", max_tokens=20, stream=True)
    next(stream)
    asked = []
    in_a_thread(
        lambda: asked.append(smollm2.create_completion("The king said:", max_tokens=8, temperature=0))
    )
    assert asked[0]["choices"] == expected["choices"]
    with pytest.raises(Cancelled, match="cut off: another request"):
        next(stream)


def test_a_stream_may_be_read_by_several_threads_or_abandoned(smollm2):
    whole = smollm2.create_completion("Once upon a time", max_tokens=12, temperature=0)
    stream = smollm2.create_completion("Once upon a time", max_tokens=12, temperature=0, stream=True)
    parts = []
    for _ in range(12):
        in_a_thread(lambda: parts.append(next(stream)["choices"][0]["text"]))
    assert "".join(parts) == whole["choices"][0]["text"]
    smollm2.create_completion("Once upon a time", max_tokens=12, stream=True)
    next(smollm2.create_completion("Once upon a time", max_tokens=12, stream=True))
    assert (
        smollm2.create_completion("Once upon a time", max_tokens=12, temperature=0)["choices"]
        == whole["choices"]
    )


def test_a_request_from_within_anothers_callback_is_refused(smollm2):
    def ask(tokens: np.ndarray, scores: np.ndarray) -> np.ndarray:
        smollm2.create_completion("The king said:", max_tokens=1)
        return scores

    with pytest.raises(YarnGGUFError, match="from within another's callback"):
        smollm2.create_completion(
            "Once upon a time", max_tokens=4, logits_processor=llama_cpp.LogitsProcessorList([ask])
        )
    assert smollm2.create_completion("Once upon a time", max_tokens=4)["choices"][0]["text"]


@pytest.mark.parametrize(
    "nested",
    [
        lambda llama: llama.create_completion("The king said:", max_tokens=1),
        lambda llama: llama.prefill(TOKENS[:8]),
        lambda llama: llama.reset(),
        lambda llama: next(llama.read_logits(TOKENS[:8])),
    ],
)
def test_a_request_from_within_a_progress_callback_is_refused(smollm2, nested):
    """It would read into, or empty, the cache that the other one reads into."""
    smollm2.reset()
    with pytest.raises(YarnGGUFError, match="from within another's callback"):
        smollm2.prefill(TOKENS[: 2 * UBATCH], lambda done, total: nested(smollm2))
    assert smollm2.n_tokens == UBATCH  # the tokens that the callback was told of
    smollm2.prefill(TOKENS[UBATCH : 2 * UBATCH])
    assert smollm2.input_ids[: 2 * UBATCH].tolist() == list(TOKENS[: 2 * UBATCH])


PICTURE = TOKENS[: 2 * UBATCH]  # stands for the tokens of a picture


class Handler:
    """A chat handler that uses a Llama as llama_cpp.llama_chat_format.Llava15ChatHandler does.

    meanwhile: called between its two reads.
    """

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.meanwhile = meanwhile

    def __call__(self, *, llama, messages, stream, max_tokens, **_) -> object:
        llama.reset()
        llama._ctx.kv_cache_clear()
        llama.eval(llama.tokenize(messages[0]["content"].encode()))
        self.meanwhile()
        llama.eval(PICTURE)
        prompt = llama.input_ids[: llama.n_tokens].tolist()
        return llama.create_completion(prompt, temperature=0, stream=stream, max_tokens=max_tokens)


@pytest.fixture
def looking(smollm2) -> Iterator[Llama]:
    yield smollm2
    smollm2.chat_handler = smollm2.progress = None


def look(llama: Llama, **kwargs) -> object:
    return llama.create_chat_completion([{"role": "user", "content": "What is it?"}], max_tokens=6, **kwargs)


def test_a_chat_handler_is_one_request(looking):
    order = []

    def other() -> None:
        looking.create_completion("The king said:", max_tokens=2)
        order.append("other")

    def begin_other() -> None:
        thread.start()
        thread.join(0.5)  # long enough, if it had a turn

    thread = threading.Thread(target=other)
    looking.chat_handler = Handler()
    expected = look(looking)["choices"]
    looking.chat_handler = Handler(begin_other)
    seen = []
    looking.progress = lambda done, total: seen.append((done, total))
    answer = look(looking)
    order.append("handler")
    thread.join()
    assert order == ["handler", "other"]
    assert answer["choices"] == expected
    assert seen[1:3] == [(UBATCH, 2 * UBATCH), (2 * UBATCH, 2 * UBATCH)]
    looking.chat_handler = Handler(looking.cancel)
    with pytest.raises(Cancelled):
        look(looking)


@pytest.mark.parametrize("parts_before", [0, 1])
def test_the_stream_of_a_chat_handler_belongs_to_its_request(looking, parts_before):
    looking.chat_handler = Handler()
    expected = look(looking)["choices"][0]["text"]
    assert "".join(part["choices"][0]["text"] for part in look(looking, stream=True)) == expected
    stream = look(looking, stream=True)
    for _ in range(parts_before):
        next(stream)
    looking.create_completion("The king said:", max_tokens=2)
    with pytest.raises(Cancelled, match="cut off: another request"):
        next(stream)
