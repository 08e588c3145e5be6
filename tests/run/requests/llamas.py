"""What the tests of requests share."""

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
