"""Shared by the tests of requests: random tokens, a small Llama, and its logits and answers."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import random_gguf

from yarn_gguf.run.llama import Llama

TOKENS = np.random.default_rng(1).integers(3, random_gguf.VOCABULARY, 2000).tolist()
UBATCH = 32


def tiny(path: Path, **kwargs) -> Llama:
    settings = {"n_ctx": 2048, "n_batch": 128, "n_ubatch": UBATCH, "n_threads": 1, "verbose": False}
    return Llama(path, **(settings | kwargs))


def answer(llama: Llama, tokens: list[int], count: int = 8) -> list[int]:
    """Return the first `count` tokens of the greedy answer to `tokens`."""
    return list(itertools.islice(llama.generate(tokens, temp=0.0), count))


def last_logits(llama: Llama) -> np.ndarray:
    """Return the logits of the last token: float32 (n_vocab,)."""
    return np.ctypeslib.as_array(llama._ctx.get_logits(), shape=(llama.n_vocab(),)).copy()


def logits_after(llama: Llama, tokens: list[int]) -> np.ndarray:
    """Return the logits of the last of `tokens`, read as a prompt: float32 (n_vocab,)."""
    next(llama.generate(tokens, temp=0.0))
    return last_logits(llama)


def in_a_thread(do: Callable[[], object]) -> None:
    """Call `do` in another thread, and wait for it."""
    thread = threading.Thread(target=do)
    thread.start()
    thread.join()
