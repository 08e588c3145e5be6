"""Requests to a Llama: freed memory, and further contexts."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import weakref
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import random_gguf
from libraries import ROOT, relative_error
from llamas import TOKENS, last_logits, tiny

from yarn_gguf import DynamicScaling, YarnGGUFError
from yarn_gguf.run.context_scaling import ContextScaling
from yarn_gguf.run.llama import Llama

RESIDENT = """
import gc, itertools, json, sys
from yarn_gguf.run.llama import Llama, llama_cpp
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
    """Return by how many bytes the resident memory grows in the last two fifths of the cycles.

    The allocator's pools fill up before.
    """
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
    assert growth(OPEN_AND_CLOSE, model_of("llama"), 100) < 4 << 20  # in 40 cycles


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_requests(model_of):
    assert growth(REQUESTS, model_of("llama"), 200) < 2 << 20  # in 80 cycles


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_closed_llama_holds_no_memory_even_while_it_is_referenced(model_of):
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
    """Else it would free the weights while a context on them is being freed."""
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
def test_a_reservation_is_at_most_the_context_and_at_least_0(model_of, tokens, factor):
    with closing(
        tiny(
            model_of("llama"),
            rope_scaling=DynamicScaling.of("yarn", policy="growth", original_max_position_embeddings=256),
        )
    ) as llama:
        if factor is None:
            with pytest.raises(YarnGGUFError, match="must be a whole number >= 0, got -1"):
                llama.reserve(tokens)
            return
        llama.reserve(tokens)
        llama.eval(TOKENS[:10])
        assert llama.dynamic_state.factor == pytest.approx(factor, rel=0.1)


def test_a_closed_further_context_is_not_referenced(llama):
    context = llama.make_context(64)
    left = weakref.ref(context)
    context.close()
    del context
    gc.collect()
    assert left() is None


def test_a_failed_start_frees_its_memory(model_of, monkeypatch):
    """The model is freed at once, although the traceback still refers to it."""
    started = []
    take_over = Llama._take_over
    monkeypatch.setattr(Llama, "_take_over", lambda llama: (started.append(llama), take_over(llama)))
    monkeypatch.setattr(ContextScaling, "apply", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny(model_of("llama"))
    with pytest.raises(YarnGGUFError, match="closed"):
        started[0].n_ctx()
