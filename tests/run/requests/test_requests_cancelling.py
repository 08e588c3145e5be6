"""Requests to a Llama: progress, cancelling, Ctrl-C and exceptions of callbacks."""

from __future__ import annotations

import signal
from contextlib import closing

import numpy as np
import pytest
from libraries import relative_error
from llamas import TOKENS, UBATCH, answer, in_a_thread, logits_after, tiny

from yarn_gguf import Cancelled
from yarn_gguf.run.llama import Llama, llama_cpp


def test_progress_is_reported_for_every_prompt_and_for_no_answer(smollm2):
    seen = []
    smollm2.progress = lambda done, total: seen.append((done, total))
    text = "The king had three sons, of whom the youngest went out into the world. " * 5
    total = len(smollm2.tokenize(text.encode(), add_bos=False))
    smollm2.reset()
    smollm2.create_completion(text, max_tokens=5)
    expected = [(min(i + UBATCH, total), total) for i in range(0, total, UBATCH)]
    assert seen == expected
    assert total > 2 * UBATCH
    seen.clear()
    smollm2.create_chat_completion([{"role": "user", "content": text}], max_tokens=5)
    assert seen[-1][0] == seen[-1][1] >= total
    seen.clear()
    list(smollm2.create_completion(text, max_tokens=5, stream=True))
    assert seen == expected
    seen.clear()
    smollm2.progress = None
    smollm2.create_completion(text[:100])
    assert seen == []


def test_progress_counts_tokens_that_are_not_in_the_cache(llama):
    seen = []
    answer(llama, TOKENS[:100])
    llama.progress = lambda done, total: seen.append((done, total))
    answer(llama, [*TOKENS[:90], *TOKENS[200:250]])
    assert seen == [(32, 50), (50, 50)]


@pytest.mark.parametrize("arch", ["llama", "lfm2", "mamba"])
def test_a_request_is_cancelled_within_a_ubatch_and_its_prompt_goes_on_from_there(model_of, arch):
    with closing(tiny(model_of(arch))) as llama:
        expected = answer(llama, TOKENS[:500])
        llama.reset()

        def cancel(done: int, total: int) -> None:
            if done == 2 * UBATCH:
                in_a_thread(llama.cancel)

        llama.progress = cancel
        with pytest.raises(Cancelled):
            answer(llama, TOKENS[:500])
        assert llama.n_tokens == 2 * UBATCH
        seen = []
        llama.progress = lambda done, total: seen.append(total)
        assert answer(llama, TOKENS[:500]) == expected
        assert set(seen) == {500 - 2 * UBATCH}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_cancelled_within_a_token(smollm2, stream):
    prompt = smollm2.tokenize(b"Once upon a time")
    expected = smollm2.create_completion(prompt, max_tokens=20, temperature=0)["choices"][0]["text"]

    def cancel_at_the_fifth(tokens: np.ndarray, logits: np.ndarray) -> bool:
        if len(tokens) == len(prompt) + 4:
            in_a_thread(smollm2.cancel)
        return False

    criteria = llama_cpp.StoppingCriteriaList([cancel_at_the_fifth])
    with pytest.raises(Cancelled):
        list(
            smollm2.create_completion(
                prompt, max_tokens=20, temperature=0, stopping_criteria=criteria, stream=stream
            )
        )
    assert smollm2.n_tokens == len(prompt) + 4
    again = smollm2.create_completion(prompt, max_tokens=20, temperature=0)["choices"][0]["text"]
    assert again == expected


def test_a_stream_that_waits_is_cancelled_at_its_next_step(smollm2):
    stream = smollm2.create_completion("Once upon a time", max_tokens=20, stream=True)
    next(stream)
    smollm2.cancel()
    with pytest.raises(Cancelled):
        next(stream)
    assert smollm2.create_completion("Once upon a time", max_tokens=2)["choices"][0]["text"]


def test_cancelling_without_a_request_concerns_no_later_one(llama):
    llama.cancel()
    assert len(answer(llama, TOKENS[:50])) == 8
    llama.cancel()
    llama.prefill(TOKENS[500:600])
    llama.cancel()
    llama.eval(TOKENS[:5])
    llama.cancel()
    assert llama.sample(temp=0.0) >= 0
    assert [len(part) for part in llama.read_logits(TOKENS[:40])] == [32, 8]


def test_embedding_and_reading_logits_are_cancelled_too(model_of, smollm2_q8, llama):
    parts = llama.read_logits(TOKENS[:100])
    next(parts)
    llama.cancel()
    with pytest.raises(Cancelled):
        next(parts)
    assert llama.n_tokens == UBATCH
    with closing(Llama(smollm2_q8, n_ctx=64, embedding=True, verbose=False)) as embedder:
        tokenize = embedder.tokenize
        embedder.eval(TOKENS[:20])
        embedder.tokenize = lambda text: (embedder.cancel(), tokenize(text))[1]
        with pytest.raises(Cancelled):
            embedder.embed("a text")
        assert embedder.n_tokens == 0  # embedding empties the cache
        embedder.tokenize = tokenize
        assert len(embedder.embed("a text")) > 0


def test_a_text_whose_cells_are_gone_is_read_again(llama):
    expected = logits_after(llama, TOKENS[:120])
    logits_after(llama, TOKENS[:100])
    llama._ctx.kv_cache_clear()  # n_tokens is still 100
    assert relative_error(logits_after(llama, TOKENS[:120]), expected) < 1e-5


def test_an_exception_of_the_progress_callback_ends_the_request_and_keeps_the_tokens(llama):
    expected = answer(llama, TOKENS[:300])
    llama.reset()

    def stop(done: int, total: int) -> None:
        if done == 3 * UBATCH:
            raise ZeroDivisionError

    llama.progress = stop
    with pytest.raises(ZeroDivisionError):
        answer(llama, TOKENS[:300])
    assert llama.n_tokens == 3 * UBATCH
    llama.reset()
    with pytest.raises(ZeroDivisionError):
        llama.prefill(TOKENS[:300])
    assert llama.n_tokens == 3 * UBATCH
    llama.progress = None
    assert answer(llama, TOKENS[:300]) == expected


@pytest.mark.parametrize("arch", ["llama", "lfm2", "mamba"])
def test_ctrl_c_at_any_moment_leaves_a_cache_that_goes_on(model_of, arch):
    moments = np.random.default_rng(7)
    with closing(tiny(model_of(arch))) as llama:
        expected = answer(llama, TOKENS[:900], 30)
        llama.reset()
        interrupted = 0
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            while interrupted < 8:
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-4, 0.05))
                try:
                    answer(llama, TOKENS[:900], 30)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
                if moments.random() < 0.5:
                    llama.reset()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert answer(llama, TOKENS[:900], 30) == expected


def test_a_token_that_ctrl_c_interrupts_does_not_count_and_leaves_no_logits(llama, monkeypatch):
    expected = logits_after(llama, TOKENS[:100])
    decode = llama._ctx.decode

    def decode_until_ctrl_c(batch: object) -> None:
        decode(batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(llama._ctx, "decode", decode_until_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        llama.eval([7])
    monkeypatch.undo()
    assert llama.n_tokens == 100
    assert relative_error(logits_after(llama, TOKENS[:100]), expected) < 1e-5


def test_a_cache_that_a_failure_emptied_counts_no_tokens(llama, monkeypatch):
    """The library empties the cache if it cannot undo a batch that it began."""
    expected = logits_after(llama, TOKENS[:100])

    def fail(batch: object) -> None:
        llama._ctx.kv_cache_clear()
        raise RuntimeError

    monkeypatch.setattr(llama._ctx, "decode", fail)
    with pytest.raises(RuntimeError):
        llama.eval([7])
    monkeypatch.undo()
    assert llama.n_tokens == 0
    assert relative_error(logits_after(llama, TOKENS[:100]), expected) < 1e-5


def test_the_logits_processor_of_a_sample_that_failed_is_forgotten(llama):
    def fail(tokens: np.ndarray, scores: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError

    llama.eval(TOKENS[:20])
    expected = llama.sample(temp=0.0)
    with pytest.raises(ZeroDivisionError):
        llama.sample(temp=0.0, logits_processor=llama_cpp.LogitsProcessorList([fail]))
    assert llama.sample(temp=0.0) == expected
