"""Shared by the tests of dynamic scaling: small Llamas, their logits, and contexts of several sequences."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import conformance
import numpy as np
import pytest
from reading import read

from yarn_gguf import RopeScaling
from yarn_gguf.run.llama import Llama, llama_cpp

L = conformance.CONTEXT
TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2}  # enum ggml_type
F32 = {"type_k": TYPES["f32"], "type_v": TYPES["f32"]}


def tiny_llama(path: Path, rope_scaling=None, *, n_ctx: int = 16 * L, **kwargs) -> Llama:
    return Llama(path, n_ctx=n_ctx, rope_scaling=rope_scaling, verbose=False, **(F32 | kwargs))


def static_logits(path: Path, tokens: list[int], scaling: RopeScaling, **kwargs) -> np.ndarray:
    """Return the logits of `tokens` in a new context under `scaling`: float32 (tokens, n_vocab)."""
    with closing(tiny_llama(path, scaling, **kwargs)) as llama:
        return read(llama, tokens)


def make_room_for_sequences(monkeypatch: pytest.MonkeyPatch, count: int, *, unified: bool) -> None:
    """Give every context room for `count` sequences, for which the bindings have no argument."""
    default = llama_cpp.llama_context_default_params

    def with_room() -> llama_cpp.llama_context_params:
        params = default()
        params.n_seq_max, params.kv_unified = count, unified
        return params

    monkeypatch.setattr(sys.modules["llama_cpp.llama_cpp"], "llama_context_default_params", with_room)


def feed(llama: Llama, tokens: list[int], *, sequence: int, first: int = 0, context=None) -> np.ndarray:
    """Read `tokens` into a sequence. Return the logits of the last one: float32 (1, n_vocab).

    first: position of the first token. context: by default the main one.
    """
    context = context or llama._ctx
    for start in range(0, len(tokens), llama.n_batch):
        part = tokens[start : start + llama.n_batch]
        batch = llama_cpp.llama_batch_init(len(part), 0, 1)
        batch.n_tokens = len(part)
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.logits[i] = token, first + start + i, i == len(part) - 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        assert llama_cpp.llama_decode(context.ctx, batch) == 0
        llama_cpp.llama_batch_free(batch)
    logits = llama_cpp.llama_get_logits(context.ctx)
    return np.ctypeslib.as_array(logits, shape=(1, llama.n_vocab())).copy()
