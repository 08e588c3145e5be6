"""Every call to a Llama that another thread closes ends before its memory is freed, or says it was closed.

In a process of its own, as one that uses what was freed ends it.
"""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import random_gguf
from libraries import ROOT

from yarn_gguf import YarnGGUFError
from yarn_gguf.run.llama import Llama
from yarn_gguf.run.turns import CLOSED, Turns

USES = {
    "tokenize": "lambda: llama.tokenize(TEXT)",
    "tokenizer": "lambda tokenizer=llama.tokenizer(): tokenizer.tokenize(TEXT)",
    "detokenize": "lambda: llama.detokenize(TOKENS)",
    "tokens of a kind": "lambda: (llama.token_eos(), llama.token_bos(), llama.token_nl())",
    "sizes": "lambda: (llama.n_ctx(), llama.n_vocab(), llama.n_embd(), llama.pooling_type())",
    "metadata": "lambda model=llama.vocabulary: (model.metadata(), model.desc())",
    "dynamic_state": "lambda: llama.dynamic_state",
    "reserve": "lambda: llama.reserve(100)",
    "make_context": "lambda: llama.make_context(64).close()",
    "save_state": "lambda: llama.save_state()",
    "reset": "lambda: llama.reset()",
    "chat": "lambda: llama.create_chat_completion([{'role': 'user', 'content': 'hi'}], max_tokens=2)",
    "read_logits": "lambda: (llama.reset(), list(llama.read_logits(TOKENS[:30])))",
}

CLOSING = f"""
import random, sys, threading, time
from yarn_gguf import Cancelled
from yarn_gguf.run.llama import Llama
from yarn_gguf.run.turns import CLOSED
path, cycles = sys.argv[1], int(sys.argv[2])
TEXT, TOKENS = b"A text to tokenize. " * 50, [*range(300, 600)]
sys.setswitchinterval(1e-5)
moments, wrong = random.Random(1), []
def use(do, has_begun):
    try:
        while True:
            try:
                do()
            except Cancelled:  # by closing
                pass
            has_begun.set()
    except BaseException as error:
        if str(error) != CLOSED:
            wrong.append(repr(error))
def close_while_used(name):
    print(name, flush=True)
    llama = Llama(path, n_ctx=512, n_threads=1, verbose=False, rope_scaling="dynamic-yarn")
    uses = {{ {", ".join(f"{name!r}: {use}" for name, use in USES.items())} }}
    has_begun = threading.Event()
    thread = threading.Thread(target=use, args=(uses[name], has_begun))
    thread.start()
    has_begun.wait()
    time.sleep(moments.uniform(0, 2e-2))
    llama.close()
    thread.join()
    assert not wrong, wrong
for name in {list(USES)}:
    for _ in range(cycles):
        close_while_used(name)
"""


def test_a_call_while_another_thread_closes_ends_first_or_says_so(tmp_path, smollm2_path):
    model = random_gguf.llama(tmp_path / "text.gguf", smollm2_path)
    line = [sys.executable, "-X", "faulthandler", "-c", CLOSING, model, "8"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{done.stdout.split()[-1]}: {done.stderr[-3000:]}"
    assert set(done.stdout.splitlines()) == set(USES)


def test_logits_that_were_read_outlive_the_llama(tmp_path):
    llama = Llama(random_gguf.llama(tmp_path / "model.gguf"), n_ctx=64, n_ubatch=8, verbose=False)
    logits = next(llama.read_logits([*range(3, 19)]))
    library = np.ctypeslib.as_array(llama._ctx.get_logits(), shape=logits.shape)
    assert np.array_equal(logits, library) and not np.shares_memory(logits, library)
    before = logits.copy()
    llama.close()
    assert np.array_equal(logits, before)


def test_closing_from_within_a_use_is_refused():
    """As a signal handler does it that comes in the middle: it would wait for itself."""
    turns, said = Turns(), []

    def close_within() -> None:
        with turns.using(), pytest.raises(YarnGGUFError, match="from within") as error, turns.last():
            pass
        said.append(str(error.value))

    thread = threading.Thread(target=close_within, daemon=True)
    thread.start()
    thread.join(10)
    assert said, "it waits for itself"
    with turns.using(), turns.take():
        pass
    with turns.last(), pytest.raises(YarnGGUFError, match=CLOSED), turns.using():
        pass
