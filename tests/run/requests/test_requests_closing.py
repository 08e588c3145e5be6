"""Requests to a Llama: closing, and uses of a closed one."""

from __future__ import annotations

import threading
import time

import pytest
from llamas import TOKENS, UBATCH, tiny

from yarn_gguf import Cancelled, YarnGGUFError
from yarn_gguf.run.turns import CLOSED, Turns
from yarn_gguf.session.folder import SessionFolder
from yarn_gguf.session.session import open_session


def test_a_stream_that_is_stepped_within_another_request_is_cut_off():
    turns = Turns()
    stream = turns.through(step for step in range(2))
    next(stream)
    with turns.take(), pytest.raises(Cancelled, match="cut off"):
        next(stream)


def test_a_stream_that_is_stepped_after_another_request_is_cut_off(llama):
    stream = llama.read_logits(TOKENS[:100])
    next(stream)
    llama.eval(TOKENS[200:210])
    with pytest.raises(Cancelled, match="cut off: another request began"):
        next(stream)
    assert llama.n_tokens == UBATCH + 10


def test_closing_refuses_the_requests_that_wait():
    turns, is_reading, said = Turns(), threading.Event(), []

    def read() -> None:
        with turns.take() as request:
            is_reading.set()
            while not request.is_cancelled:
                pass

    def wait() -> None:
        try:
            with turns.take():
                said.append("had a turn")
        except YarnGGUFError as error:
            said.append(str(error))

    threads = [threading.Thread(target=read), threading.Thread(target=wait)]
    threads[0].start()
    is_reading.wait()
    threads[1].start()
    with turns.last():
        pass
    for thread in threads:
        thread.join()
    assert said == [CLOSED]


def test_restoring_a_session_cuts_off_a_stream(smollm2, tmp_path):
    folder = SessionFolder(tmp_path, max_bytes=10**9)
    smollm2.reset()
    session = folder.open(smollm2, TOKENS[:40])
    smollm2.prefill(TOKENS[:40])
    session.save()
    stream = smollm2.create_completion("Once upon a time", max_tokens=8, stream=True)
    next(stream)
    session = folder.open(smollm2, TOKENS[:60])
    with pytest.raises(Cancelled):
        next(stream)
    assert session.tokens == TOKENS[:40] == smollm2.input_ids[: smollm2.n_tokens].tolist()


def test_closing_cancels_the_request_of_another_thread(model_of):
    llama = tiny(model_of("llama"), n_ctx=2048)
    begun, seen, raised = threading.Event(), [], []

    def linger(done: int, total: int) -> None:
        seen.append(done)
        begun.set()
        time.sleep(0.02)

    llama.progress = linger

    def read() -> None:
        try:
            llama.prefill(TOKENS)
        except YarnGGUFError as error:
            raised.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    begun.wait()
    llama.close()
    thread.join()
    assert [type(each) for each in raised] == [Cancelled]
    assert seen[-1] < len(TOKENS)
    with pytest.raises(YarnGGUFError, match="this Llama was closed"):
        llama.prefill(TOKENS)


def test_closing_from_within_a_request_is_refused_and_cancels_it(model_of):
    llama = tiny(model_of("llama"))
    refusals = []

    def close(done: int, total: int) -> None:
        with pytest.raises(YarnGGUFError) as refusal:
            llama.close()
        refusals.append(str(refusal.value))

    llama.progress = close
    with pytest.raises(Cancelled):
        llama.prefill(TOKENS)
    assert llama.n_tokens == UBATCH
    assert "from within a request" in refusals[0]
    llama.close()


def test_every_use_of_a_closed_llama_is_refused(model_of):
    llama = tiny(model_of("llama"))
    stream = llama.generate(TOKENS[:50])
    next(stream)
    further, tokenizer = llama.make_context(64), llama.tokenizer()
    llama.close()
    llama.close()
    uses = [
        further.n_ctx,
        further.kv_cache_clear,
        lambda: tokenizer.tokenize(b"hi"),
        lambda: next(stream),
        lambda: llama("hi"),
        lambda: llama.create_chat_completion([{"role": "user", "content": "hi"}]),
        lambda: llama.tokenize(b"hi"),
        lambda: llama.detokenize([5]),
        lambda: llama.eval([1]),
        lambda: llama.prefill([1]),
        lambda: llama.sample(),
        lambda: next(llama.generate([1])),
        lambda: next(llama.read_logits([1])),
        lambda: llama.embed("hi"),
        lambda: llama.reset(),
        lambda: llama.save_state(),
        lambda: llama.load_state(None),
        lambda: llama.set_rope_scaling("none"),
        lambda: llama.make_context(512),
        lambda: llama.dynamic_state,
        lambda: llama.reserve(5),
        lambda: open_session(llama, "none.session"),
        llama.n_ctx,
        llama.n_vocab,
        llama.token_eos,
    ]
    for number, use in enumerate(uses):
        with pytest.raises(YarnGGUFError, match="this Llama was closed"):
            use()
            pytest.fail(f"use {number}")
    llama.cancel()
