"""Handles of the library, as llama_cpp._internals has them, that raise where those would end the process."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.native.library import load
from yarn_gguf.native.prototypes import DynamicState
from yarn_gguf.native.scaling import dynamic_state
from yarn_gguf.native.text import tokenize
from yarn_gguf.run.turns import CLOSED, Turns, guarded

llama_cpp = load()

from llama_cpp._internals import LlamaBatch, LlamaContext, LlamaModel  # noqa: E402  (after load, which chooses)


class Vocabulary(LlamaModel):
    """A model, if only for its tokens."""

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        return tokenize(self.vocab, text, add_bos, special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        text = b"".join(bytes_of(self, token, special=special) for token in tokens)
        begins = len(tokens) > 0 and tokens[0] == self.token_bos()  # Llama 1 put a space behind it
        return text[1:] if begins and text.startswith(b" ") else text


@guarded
class Model(Vocabulary):
    """The model of a Llama: used by all threads at any time."""

    turns: Turns


@guarded
class Further(LlamaContext):
    """A further context, which is freed with the Llama at the latest. Until then it is one of `opened`."""

    def __init__(self, model: Model, params: Any, opened: set[Further]) -> None:
        self._closing = threading.RLock()
        self._opened, self.turns = opened, model.turns
        # LlamaModel would keep what was closed, too
        super().__init__(
            model=SimpleNamespace(model=model.model, _exit_stack=ExitStack()), params=params, verbose=False
        )
        self.model = model
        opened.add(self)

    def close(self) -> None:
        """May be called again, and while another thread closes the Llama, which waits for it."""
        with self._closing:
            super().close()
        self._opened.discard(self)


def close_all(contexts: set[Further]) -> None:
    for each in [*contexts]:
        each.close()


@guarded
class Context(LlamaContext):
    """The main context of a Llama: it stops where its request was cancelled, and knows what a cut leaves."""

    turns: Turns

    def dynamic_state(self) -> DynamicState:
        return dynamic_state(self.ctx)

    def decode(self, batch: LlamaBatch) -> None:
        self.turns.check()
        if self.model.params.vocab_only:
            raise YarnGGUFError(f"{self.model.path_model} was loaded with vocab_only: it can tokenize alone")
        most = llama_cpp.llama_n_ubatch(self.ctx)
        if self.is_at_once and batch.n_tokens() > most:
            raise YarnGGUFError(
                f"{batch.n_tokens()} tokens, whose attention is not causal, have to be read at once, "
                f"and n_ubatch is {most}: make it as large as n_batch"
            )
        super().decode(batch)

    @property
    def is_at_once(self) -> bool:
        """Whether a token sees those after it, which have to be read with it."""
        return self.memory is None or self.params.attention_type == llama_cpp.LLAMA_ATTENTION_TYPE_NON_CAUSAL

    def kv_cache_seq_rm(self, seq_id: int, p0: int, p1: int) -> bool:
        """Whether that was done, and a text that is cut at p0 can go on."""
        if self.memory is None:
            raise YarnGGUFError(f"{self.model.path_model}: there is no cache, so nothing can be generated")
        last = llama_cpp.llama_memory_seq_pos_max(self.memory, 0) if p1 < 0 < p0 else p0
        if last < p0 - 1:  # less is there than was believed
            return False
        is_cut = p1 < 0 < p0 <= last
        done = super().kv_cache_seq_rm(seq_id, p0, p1)
        if not (done and is_cut):
            return done
        window = llama_cpp.llama_model_n_swa(self.model.model)  # 0 where there is none
        return 0 <= llama_cpp.llama_memory_seq_pos_min(self.memory, 0) <= max(0, p0 - max(window, 1))


class Batch(LlamaBatch):
    """Of a Llama: without a token, LlamaBatch would write in front of the library's memory."""

    def add_sequence(self, batch: Sequence[int], seq_id: int, logits_all: bool) -> None:
        if not batch:
            raise YarnGGUFError("a text to embed has no tokens: leave it out")
        super().add_sequence(batch, seq_id, logits_all)


class Closed:
    """Stands where a closed Llama's parts were: to use them would end the process."""

    def __getattr__(self, name: str) -> Any:
        raise YarnGGUFError(CLOSED)


def bytes_of(model: LlamaModel, token: int, spaces: int = 0, *, special: bool = False) -> bytes:
    """Of a token's text, without as many spaces in front. LlamaModel has no room for more than 32 bytes."""
    buffer = ctypes.create_string_buffer(32)
    size = llama_cpp.llama_token_to_piece(model.vocab, token, buffer, len(buffer), spaces, special)
    if size < 0:
        buffer = ctypes.create_string_buffer(-size)
        size = llama_cpp.llama_token_to_piece(model.vocab, token, buffer, len(buffer), spaces, special)
    return buffer.raw[:size]
