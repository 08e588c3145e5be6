"""Requests to a Llama: cancelled, stopped, closed, from several threads, and going on from what was read."""

from __future__ import annotations

import gc
import inspect
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import random_gguf
from libraries import ROOT, relative_error

from yarn_gguf import Cancelled, DynamicScaling, YarnGGUFError
from yarn_gguf.llama import Llama, llama_cpp
from yarn_gguf.session_folder import SessionFolder
from yarn_gguf.turns import CLOSED, Turns

TOKENS = np.random.default_rng(1).integers(3, random_gguf.VOCABULARY, 2000).tolist()
UBATCH = 32


@pytest.fixture(scope="module")
def model_of(tmp_path_factory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("models")

    def make(arch: str) -> Path:
        path = folder / f"{arch}.gguf"
        return path if path.exists() else getattr(random_gguf, arch)(path)

    return make


def tiny(path: Path, **kwargs) -> Llama:
    settings = {"n_ctx": 2048, "n_batch": 128, "n_ubatch": UBATCH, "n_threads": 1, "verbose": False}
    return Llama(path, **(settings | kwargs))


@pytest.fixture
def llama(model_of) -> Iterator[Llama]:
    with closing(tiny(model_of("llama"))) as llama:
        yield llama


@pytest.fixture(scope="module")
def smollm2(smollm2_q8) -> Iterator[Llama]:
    with closing(Llama(smollm2_q8, n_ctx=512, n_ubatch=UBATCH, n_threads=2, verbose=False)) as llama:
        yield llama


def answer(llama: Llama, tokens: list[int], count: int = 8) -> list[int]:
    return list(itertools.islice(llama.generate(tokens, temp=0.0), count))


def last_logits(llama: Llama) -> np.ndarray:
    return np.ctypeslib.as_array(llama._ctx.get_logits(), shape=(llama.n_vocab(),)).copy()


def logits_after(llama: Llama, tokens: list[int]) -> np.ndarray:
    next(llama.generate(tokens, temp=0.0))
    return last_logits(llama)


def in_a_thread(do: Callable[[], object]) -> None:
    thread = threading.Thread(target=do)
    thread.start()
    thread.join()


# ---- progress and cancelling ------------------------------------------------------------------------


def test_progress_is_reported_of_every_prompt_that_is_read_and_of_no_answer(smollm2):
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


def test_progress_counts_what_is_not_in_the_cache(llama):
    seen = []
    answer(llama, TOKENS[:100])
    llama.progress = lambda done, total: seen.append((done, total))
    answer(llama, [*TOKENS[:90], *TOKENS[200:250]])
    assert seen == [(32, 50), (50, 50)]


@pytest.mark.parametrize("arch", ["llama", "lfm2", "mamba"])
def test_a_request_is_cancelled_within_a_ubatch_and_its_prompt_goes_on_where_it_was(model_of, arch):
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


def test_cancelling_when_nothing_is_under_way_concerns_no_later_request(llama):
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
        assert embedder.n_tokens == 0  # the cache was emptied for it
        embedder.tokenize = tokenize
        assert len(embedder.embed("a text")) > 0


def test_a_cache_that_lacks_what_it_should_have_is_read_again(llama):
    expected = logits_after(llama, TOKENS[:120])
    logits_after(llama, TOKENS[:100])
    llama._ctx.kv_cache_clear()  # and n_tokens still says 100
    assert relative_error(logits_after(llama, TOKENS[:120]), expected) < 1e-5


def test_what_the_progress_callback_raises_ends_the_request_and_what_was_read_stays(llama):
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


def test_what_was_begun_when_ctrl_c_came_is_not_read_and_its_logits_are_nobodys(llama, monkeypatch):
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
    """The library empties it where it cannot undo what it began."""
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


# ---- several threads, and streams that wait ------------------------------------------------------------


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


def test_a_stream_is_cut_off_by_the_next_request_and_says_so(smollm2):
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


def test_a_stream_may_be_read_by_several_threads_and_be_left(smollm2):
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
    """It would read on from, or empty, what the other one reads into."""
    smollm2.reset()
    with pytest.raises(YarnGGUFError, match="from within another's callback"):
        smollm2.prefill(TOKENS[: 2 * UBATCH], lambda done, total: nested(smollm2))
    assert smollm2.n_tokens == UBATCH  # what the callback was told of is read
    smollm2.prefill(TOKENS[UBATCH : 2 * UBATCH])
    assert smollm2.input_ids[: 2 * UBATCH].tolist() == list(TOKENS[: 2 * UBATCH])


# ---- chat handlers that read by themselves, as those for pictures do --------------------------------------

PICTURE = TOKENS[: 2 * UBATCH]  # stands for what such a handler computes


class Handler:
    """As llama_cpp.llama_chat_format.Llava15ChatHandler uses a Llama."""

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


def test_all_that_a_chat_handler_does_is_one_request(looking):
    order = []

    def other() -> None:
        looking.create_completion("The king said:", max_tokens=2)
        order.append("other")

    def begin_other() -> None:
        thread.start()
        thread.join(0.5)  # would be enough, had it a turn

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
def test_the_stream_of_a_chat_handler_is_the_same_request(looking, parts_before):
    looking.chat_handler = Handler()
    expected = look(looking)["choices"][0]["text"]
    assert "".join(part["choices"][0]["text"] for part in look(looking, stream=True)) == expected
    stream = look(looking, stream=True)
    for _ in range(parts_before):
        next(stream)
    looking.create_completion("The king said:", max_tokens=2)
    with pytest.raises(Cancelled, match="cut off: another request"):
        next(stream)


# ---- closing ---------------------------------------------------------------------------------------


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


def test_closing_lets_nobody_who_waits_have_a_turn():
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


def test_a_session_that_is_restored_cuts_off_a_stream(smollm2, tmp_path):
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


def test_closing_cancels_what_another_thread_is_doing(model_of):
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


def test_every_use_of_a_closed_llama_says_so(model_of):
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
        lambda: llama.open_session("none.session"),
        llama.n_ctx,
        llama.n_vocab,
        llama.token_eos,
    ]
    for number, use in enumerate(uses):
        with pytest.raises(YarnGGUFError, match="this Llama was closed"):
            use()
            pytest.fail(f"use {number}")
    llama.cancel()


RESIDENT = """
import gc, itertools, json, sys
from yarn_gguf.llama import Llama, llama_cpp
path, cycles = sys.argv[1], int(sys.argv[2])
def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096
"""

OPEN_AND_CLOSE = """
sizes = []
for i in range(cycles):
    llama = Llama(path, n_ctx=2048, n_threads=1, verbose=False)
    next(llama.generate([5 + i % 200] * 40, temp=0.0))
    if i % 2:
        llama.close()
    del llama
    sizes.append(resident())
print(json.dumps(sizes))
"""

REQUESTS = """
sizes = []
llama = Llama(path, n_ctx=2048, n_threads=1, verbose=False)
def refuse(tokens, scores):
    raise ZeroDivisionError
for i in range(cycles):
    prompt = [5 + i % 200] * 40
    list(itertools.islice(llama.generate(prompt), 8))
    stream = llama.generate(prompt[:30] + [7] * 10)
    next(stream)
    llama.cancel()
    try:
        next(llama.generate(prompt, logits_processor=llama_cpp.LogitsProcessorList([refuse])))
    except ZeroDivisionError:
        llama.load_state(llama.save_state())
    llama.make_context(256).close()
    llama.reset()
    sizes.append(resident())
print(json.dumps(sizes))
"""


KEPT = """
sizes, closed = [], []
for i in range(cycles):
    closed.append(Llama(path, n_ctx=1 << 17, n_threads=1, verbose=False))
    closed[-1].close()
    sizes.append(resident())
print(json.dumps(sizes))
"""


def growth(script: str, path: Path, cycles: int) -> int:
    """Bytes from after three fifths of the cycles to the end: the allocator's pools fill up at first."""
    line = [sys.executable, "-c", RESIDENT + script, path, str(cycles)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout)
    middle = cycles * 3 // 5
    kib = [sizes[i] // 1024 for i in (0, middle, -1)]
    print("resident after the first, the middle and the last, in KiB:", *kib)
    return min(sizes[-5:]) - min(sizes[middle : middle + 5])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_open_and_close(model_of):
    assert growth(OPEN_AND_CLOSE, model_of("llama"), 100) < 4 << 20  # of 40 contexts


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_requests(model_of):
    assert growth(REQUESTS, model_of("llama"), 200) < 2 << 20  # of 80 cycles


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_closed_holds_no_memory_even_where_it_is_kept(model_of):
    assert growth(KEPT, model_of("llama"), 20) < 16 << 20  # each has a cache of 32 MiB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_200_cycles_of_a_real_model(smollm2_q8):
    assert growth(OPEN_AND_CLOSE, smollm2_q8, 200) < 8 << 20  # a context takes 45 MiB, the weights 138


def test_a_further_context_is_closed_with_the_llama(llama):
    context = llama.make_context(64)
    llama.close()
    assert context.ctx is None


def test_closing_waits_for_another_thread_that_closes_a_further_context(llama):
    """Or it would free the weights while the context on them is being freed."""
    context = llama.make_context(64)
    begun, released = threading.Event(), threading.Event()
    freeing = context._exit_stack.pop_all()
    context._exit_stack.callback(lambda: (begun.set(), released.wait(), freeing.close()))
    threads = [threading.Thread(target=each.close) for each in (context, llama)]
    threads[0].start()
    begun.wait()
    threads[1].start()
    threads[1].join(0.3)
    has_waited = threads[1].is_alive()
    released.set()
    for thread in threads:
        thread.join()
    assert has_waited


def test_a_further_context_has_the_adapter_too(model_of, tmp_path):
    lora = random_gguf.adapter(tmp_path / "lora.gguf")
    with closing(tiny(model_of("llama"), lora_path=str(lora))) as llama:
        llama.eval(TOKENS[:20])
        expected = last_logits(llama)
        further = llama.make_context(256)
        llama._batch.set_batch(batch=TOKENS[:20], n_past=0, logits_all=False)
        further.decode(llama._batch)
        got = np.ctypeslib.as_array(further.get_logits(), shape=(llama.n_vocab(),))
        assert relative_error(got, expected) < 1e-4


@pytest.mark.parametrize(("tokens", "factor"), [(-1, None), (0, 1), (512, 2), (1 << 40, 8)])
def test_no_more_is_reserved_than_there_is_and_nothing_below_0(model_of, tokens, factor):
    with closing(tiny(model_of("llama"), rope_scaling=DynamicScaling("yarn", "growth", 256))) as llama:
        if factor is None:
            with pytest.raises(YarnGGUFError, match="must be a whole number >= 0, got -1"):
                llama.reserve(tokens)
            return
        llama.reserve(tokens)
        llama.eval(TOKENS[:10])
        assert llama.dynamic_state.factor == pytest.approx(factor, rel=0.1)


def test_a_further_context_that_was_closed_is_forgotten(llama):
    context = llama.make_context(64)
    left = weakref.ref(context)
    context.close()
    del context
    gc.collect()
    assert left() is None


def test_a_failed_start_gives_its_memory_back(model_of, monkeypatch):
    """What was loaded before the failure is freed, not left to whoever holds the traceback."""
    started = []
    take_over = Llama._take_over
    monkeypatch.setattr(Llama, "_take_over", lambda llama: (started.append(llama), take_over(llama)))
    monkeypatch.setattr(Llama, "_scale", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny(model_of("llama"))
    with pytest.raises(YarnGGUFError, match="closed"):
        started[0].n_ctx()


# ---- more than fits -----------------------------------------------------------------------------------


def test_a_prompt_longer_than_the_context_is_refused_and_nothing_is_lost(smollm2):
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
    with closing(tiny(model_of("llama"), n_ctx=300)) as llama:  # the library makes 512 of it
        tokens = []
        with pytest.raises(YarnGGUFError, match="1 tokens do not fit: 512 of 512"):
            tokens.extend(iter_into(llama.generate(TOKENS[:290], temp=0.0), tokens))
        assert len(tokens) == 512 - 290 + 1
        assert llama.n_tokens == 512


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_the_context_cuts_within_a_letter_keeps_the_letters_before(smollm2_q8, stream):
    """Completions go on beyond max_tokens until a letter of several bytes is whole: here it never is."""
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
    for each in source:
        target.append(each)
    return []


# ---- prefix reuse ---------------------------------------------------------------------------------------

L = 256
POLICIES = [None, *(DynamicScaling("yarn", policy, L) for policy in ("growth", "request", "exact"))]


@pytest.mark.parametrize("scaling", POLICIES, ids=lambda scaling: getattr(scaling, "policy", "none"))
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (TOKENS[:600], [*TOKENS[:600], *TOKENS[700:750]]),  # goes on
        (TOKENS[:900], [*TOKENS[:300], *TOKENS[1000:1020]]),  # another branch, shorter: s falls
        (TOKENS[:300], [*TOKENS[:200], *TOKENS[1000:1700]]),  # another branch, longer: s rises
        (TOKENS[:600], TOKENS[:600]),  # the same
        (TOKENS[:600], TOKENS[:100]),  # its beginning
    ],
)
def test_going_on_from_a_prefix_is_as_reading_all(tmp_path, scaling, first, second):
    """One layer: its keys do not depend on the s under which earlier ones were read."""
    path = random_gguf.llama(tmp_path / "model.gguf", layers=1)
    settings = {"rope_scaling": scaling, "type_k": 0, "type_v": 0}
    with closing(tiny(path, **settings)) as fresh, closing(tiny(path, **settings)) as reusing:
        answer(reusing, first, 5)
        seen = []
        reusing.progress = lambda done, total: seen.append(total)
        expected, got = logits_after(fresh, second), logits_after(reusing, second)
        assert reusing.dynamic_state.factor == fresh.dynamic_state.factor
        assert relative_error(got, expected) < 1e-4
        assert sum(set(seen)) < len(second)  # not all was read again


@pytest.mark.parametrize("arch", ["lfm2", "mamba"])
@pytest.mark.parametrize("second", [TOKENS[:100], [*TOKENS[:200], 7, 8], TOKENS[:300], TOKENS[:450]])
def test_recurrent_layers_that_cannot_be_cut_read_all_again(model_of, arch, second):
    with closing(tiny(model_of(arch))) as fresh, closing(tiny(model_of(arch))) as reusing:
        answer(reusing, TOKENS[:300], 5)
        assert relative_error(logits_after(reusing, second), logits_after(fresh, second)) < 1e-4


@pytest.mark.parametrize("arch", ["llama", "lfm2", "mamba"])
def test_what_was_cut_by_hand_is_read_again_where_it_cannot_be(model_of, arch):
    """As speculative decoding does it: n_tokens is set back, and reading goes on."""
    with closing(tiny(model_of(arch))) as llama:
        llama.eval(TOKENS[:200])
        llama.n_tokens = 150
        llama.eval(TOKENS[300:320])
        got = last_logits(llama)
        assert llama.n_tokens == 170
        llama.reset()
        llama.eval([*TOKENS[:150], *TOKENS[300:320]])
        assert relative_error(got, last_logits(llama)) < 1e-4


@pytest.mark.parametrize(("arch", "n_ubatch"), [("llama", 4), ("mamba", UBATCH), ("lfm2", UBATCH)])
def test_a_draft_changes_no_token_of_the_answer(model_of, arch, n_ubatch):
    """Though a ubatch does not hold it, or a part of it is refused and the cache cannot be cut."""
    prompt, count = TOKENS[:20], 60
    with closing(tiny(model_of(arch))) as llama:
        expected = answer(llama, prompt, count)

    def draft(tokens: np.ndarray, **_: object) -> np.ndarray:
        rest = [*prompt, *expected, *TOKENS[:9]][len(tokens) :][:8]
        return np.array([*rest[:3], (rest[3] + 1) % 256, *rest[4:]])

    with closing(tiny(model_of(arch), draft_model=draft, n_ubatch=n_ubatch)) as llama:
        assert answer(llama, prompt, count) == expected


def test_a_session_has_no_token_that_a_draft_model_proposed_in_vain(model_of, tmp_path):
    def draft(tokens: np.ndarray, **_: object) -> np.ndarray:
        return np.arange(7, 15)

    path = tmp_path / "a.session"
    with closing(tiny(model_of("llama"), draft_model=draft)) as llama:
        with llama.open_session(path) as session:
            stream = llama.generate(TOKENS[:20], temp=0)
            given = [next(stream) for _ in range(5)]
            stream.close()
        assert session.tokens == [*TOKENS[:20], *given[:-1]]


@pytest.mark.parametrize("name", ["__init__", "generate", "sample", "embed", "tokenize", "detokenize"])
def test_a_method_has_the_parameters_of_upstreams(name: str) -> None:
    theirs = inspect.signature(getattr(llama_cpp.Llama, name)).parameters
    ours = inspect.signature(getattr(Llama, name)).parameters
    assert [each for each in ours if each in theirs] == [*theirs]
    more = {"__init__": ["rope_scaling", "progress"]}.get(name, [])
    assert [each for each in ours if each not in theirs] == more


@pytest.mark.parametrize(("swa_full", "is_read_again"), [(None, False), (True, False), (False, True)])
def test_a_cut_beyond_what_a_windows_cache_holds_is_read_again(model_of, swa_full, is_read_again):
    path = model_of("gemma2")
    second = [*TOKENS[:500], *TOKENS[1000:1010]]
    with closing(tiny(path)) as fresh, closing(tiny(path, swa_full=swa_full)) as reusing:
        answer(reusing, TOKENS[:1500], 3)
        seen = []
        reusing.progress = lambda done, total: seen.append(total)
        assert relative_error(logits_after(reusing, second), logits_after(fresh, second)) < 1e-3
        assert set(seen) == {510 if is_read_again else 10}
        seen.clear()
        answer(reusing, [*second, *TOKENS[1100:1120]])
        assert set(seen) == {20}  # where nothing is cut, nothing is read again


def test_a_state_that_is_refused_leaves_what_was_read(model_of):
    """Or the tokens of the one would stand for the cache of the other."""
    other, text = TOKENS[:50], TOKENS[100:200]
    with (
        closing(tiny(model_of("llama"))) as fresh,
        closing(tiny(model_of("llama"), rope_scaling="yarn", n_ctx=1 << 13)) as llama,
    ):
        fresh.eval(other)
        state = fresh.save_state()
        expected = logits_after(llama, other)
        logits_after(llama, text)
        with pytest.raises(YarnGGUFError):
            llama.load_state(state)
        assert relative_error(logits_after(llama, other), expected) < 1e-4


def test_a_state_of_a_shorter_context_goes_on_to_the_end_of_the_longer(model_of):
    with closing(tiny(model_of("llama"), n_ctx=256)) as short, closing(tiny(model_of("llama"))) as llama:
        short.eval(TOKENS[:200])
        llama.load_state(short.save_state())
        llama.eval(TOKENS[200:600])
        got = last_logits(llama)
        llama.reset()
        llama.eval(TOKENS[:600])
        assert relative_error(got, last_logits(llama)) < 1e-4


@pytest.mark.parametrize(("windows", "is_read_again"), [(0.5, True), (1, False)])
def test_a_window_of_which_the_cache_lacks_a_part_is_read_again(model_of, windows, is_read_again):
    path = model_of("gemma2")
    with closing(tiny(path)) as fresh, closing(tiny(path, swa_full=False)) as reusing:
        answer(reusing, TOKENS[:1500], 3)
        first = llama_cpp.llama_memory_seq_pos_min(reusing._ctx.memory, 0)
        window = llama_cpp.llama_model_n_swa(reusing._model.model)
        length = first + int(windows * window)
        second = [*TOKENS[:length], *TOKENS[1600:1610]]
        assert length < 1500
        seen = []
        reusing.progress = lambda done, total: seen.append(total)
        assert relative_error(logits_after(reusing, second), logits_after(fresh, second)) < 1e-3
        assert set(seen) == {len(second) if is_read_again else 10}
