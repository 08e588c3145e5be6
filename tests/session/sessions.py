"""Shared by the tests of sessions: a text, a small Llama, and ways to read and save."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import conformance
import numpy as np

from yarn_gguf.native.cache_types import CACHE_TYPES
from yarn_gguf.run.llama import Llama
from yarn_gguf.session.session import open_session

L = conformance.CONTEXT  # tokens of the original context
TOKENS = np.random.default_rng(1).integers(3, 256, 8 * L).tolist()
F16, F32, Q8_0 = (CACHE_TYPES[name] for name in ("f16", "f32", "q8_0"))


def tiny_llama(path: Path, rope_scaling=None, *, n_ctx: int = 8 * L, **kwargs) -> Llama:
    settings = {"n_threads": 1, "n_batch": 64, "verbose": False, **kwargs}
    return Llama(path, n_ctx=n_ctx, rope_scaling=rope_scaling, **settings)


def reopened(path: Path, session: Path, *args, **kwargs) -> Llama:
    """Return a new Llama with the session restored."""
    llama = tiny_llama(path, *args, **kwargs)
    open_session(llama, session)
    return llama


def saved(model: Path, session: Path, tokens: list[int], **kwargs) -> Path:
    """Read `tokens` and save them to the file `session`."""
    with closing(tiny_llama(model, **kwargs)) as llama:
        llama.prefill(tokens)
        open_session(llama, session).save()
    return session
