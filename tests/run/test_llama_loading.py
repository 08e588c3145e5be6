"""Loading a model: the process's streams stay as they are, and a signal ends the load."""

from __future__ import annotations

import random_gguf
from libraries import run_python

PREAMBLE = """
import os, signal, sys, threading, time
from yarn_gguf.run.handles import llama_cpp
from yarn_gguf.run.llama import Llama

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

def load():
    Llama(sys.argv[1], n_ctx=64, verbose=False).close()
"""

WRITES_WHILE_MODELS_LOAD = """
is_over = False

def write():
    count = 0
    while not is_over:
        for stream in (1, 2):
            os.write(stream, b"%d\\n" % count)
        count += 1
    return count

def load_some():
    for _ in range(5):
        load()

loaders = [threading.Thread(target=load_some) for _ in range(int(sys.argv[2]))]
counts = []
writer = threading.Thread(target=lambda: counts.append(write()))
for thread in [*loaders, writer]:
    thread.start()
for thread in loaders:
    thread.join()
is_over = True
writer.join()
for stream in (1, 2):
    os.write(stream, b"%d\\n" % counts[0])
print("last", flush=True)
print("last", file=sys.stderr, flush=True)
"""

INTERRUPTED_AT_A_LINE = """
class Interrupting:
    lines = []

    def write(self, text):
        self.lines.append(text)
        if len(self.lines) == 1:
            signal.raise_signal(signal.SIGINT)

    def flush(self):
        pass

sys.stderr, before = Interrupting(), sys.stderr
try:
    Llama(sys.argv[1], n_ctx=64, verbose=True)
except KeyboardInterrupt:
    print("interrupted")
sys.stderr = before
print("".join(Interrupting.lines))
"""

INTERRUPTED_AT_ANY_MOMENT = """
load()  # what is done once
start = time.perf_counter()
load()
duration = time.perf_counter() - start
count, kept = 0, []
for i in range(50):
    timer = threading.Timer(duration * i / 50, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        kept.append(Llama(sys.argv[1], n_ctx=64, verbose=False))
        time.sleep(10)
    except KeyboardInterrupt:
        count += 1
    timer.join()
print(count, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""

HANDLED_WITHOUT_AN_EXCEPTION = """
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(True))

def send():
    for _ in range(100):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.0002)

sender = threading.Thread(target=send)
sender.start()
while sender.is_alive():
    load()
print(len(seen) > 1)
"""


def test_what_other_threads_write_while_models_load_is_not_lost(tmp_path):
    """Two threads load at once."""
    path = random_gguf.llama(tmp_path / "model.gguf")
    done = run_python(None, "-c", PREAMBLE + WRITES_WHILE_MODELS_LOAD, str(path), "2")
    assert done.returncode == 0, done.stderr
    for stream in (done.stdout, done.stderr):
        *numbers, last = stream.splitlines()
        assert last == "last"
        assert [int(each) for each in numbers] == list(range(len(numbers)))
        assert len(numbers) > 10


def test_ctrl_c_ends_the_load_and_the_constructor_raises_it(tmp_path):
    path = random_gguf.llama(tmp_path / "model.gguf")
    done = run_python(None, "-c", PREAMBLE + INTERRUPTED_AT_A_LINE, str(path))
    assert done.stdout.startswith("interrupted\n"), done.stdout + done.stderr
    assert "cancelled model load" in done.stdout


def test_no_ctrl_c_is_lost_whenever_it_comes_in_a_load(tmp_path):
    path = random_gguf.llama(tmp_path / "model.gguf")
    done = run_python(None, "-c", PREAMBLE + INTERRUPTED_AT_ANY_MOMENT, str(path))
    assert done.stdout == "50 True\n", done.stderr


def test_a_signal_whose_handler_raises_nothing_ends_no_load(tmp_path):
    path = random_gguf.llama(tmp_path / "model.gguf")
    done = run_python(None, "-c", PREAMBLE + HANDLED_WITHOUT_AN_EXCEPTION, str(path))
    assert done.stdout == "True\n", done.stderr
