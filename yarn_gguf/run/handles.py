"""The library's handles, those of llama_cpp._internals, with exceptions where they would end the process."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.native.library import load
from yarn_gguf.native.log import captured_errors, reason
from yarn_gguf.native.prototypes import DynamicState
from yarn_gguf.native.scaling import dynamic_state
from yarn_gguf.native.signals import deferred_exceptions
from yarn_gguf.native.text import tokenize
from yarn_gguf.run.turns import CLOSED, Turns, guarded

load()  # chooses the library that llama_cpp binds

import llama_cpp as llama_cpp  # noqa: E402  (others import it from here)
from llama_cpp._internals import LlamaBatch, LlamaContext, LlamaModel  # noqa: E402


class Vocabulary(LlamaModel):
    """A model, if only for its tokens."""

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        """Return the tokens of `text`. Raises YarnGGUFError."""
        return tokenize(self.vocab, text, add_bos, special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """Return the text of `tokens`, without the space that Llama 1 puts after the BOS token."""
        text = b"".join(bytes_of(self, token, special=special) for token in tokens)
        begins = len(tokens) > 0 and tokens[0] == self.token_bos()
        return text[1:] if begins and text.startswith(b" ") else text

    def is_end(self, token: int) -> bool:
        """Return whether `token` ends a text or a turn (EOG)."""
        return llama_cpp.llama_vocab_is_eog(self.vocab, token)

    @property
    def window(self) -> int:
        """Tokens of the sliding window; 0 if no layer has one."""
        return llama_cpp.llama_model_n_swa(self.model)


@guarded
class Model(Vocabulary):
    """The model of a Llama. All threads use it at any time."""

    turns: Turns


class CacheOperations(LlamaContext):
    """A context that raises YarnGGUFError where the library logs that it refuses an operation."""

    def kv_cache_seq_shift(self, seq_id: int, p0: int, p1: int, shift: int) -> None:
        """Raise the positions [p0, p1) of a sequence by `shift`."""
        with _raising_refusals():
            super().kv_cache_seq_shift(seq_id, p0, p1, shift)

    def kv_cache_seq_cp(self, seq_id_src: int, seq_id_dst: int, p0: int, p1: int) -> None:
        """Copy the positions [p0, p1) of a sequence to another one."""
        with _raising_refusals():
            super().kv_cache_seq_cp(seq_id_src, seq_id_dst, p0, p1)


@contextmanager
def _raising_refusals() -> Iterator[None]:
    with captured_errors() as lines:
        yield
    if lines:
        raise YarnGGUFError(reason(lines))


@guarded
class Further(CacheOperations):
    """A further context on a Llama's model. It is freed with the Llama at the latest.

    opened: the set of further contexts that are open.
    """

    def __init__(self, model: Model, params: Any, opened: set[Further]) -> None:
        self._closing = threading.RLock()
        self._opened, self.turns = opened, model.turns
        # a LlamaModel would keep closed contexts, too
        owner: Any = SimpleNamespace(model=model.model, _exit_stack=ExitStack())
        super().__init__(model=owner, params=params, verbose=False)
        self.model = model
        opened.add(self)

    def close(self) -> None:
        """Free the context. May be called again, and while another thread closes the Llama, which waits."""
        with self._closing, deferred_exceptions():
            super().close()
        self._opened.discard(self)


def close_all(contexts: set[Further]) -> None:
    """Close all of `contexts`, which lose their members meanwhile."""
    for each in [*contexts]:
        each.close()


@guarded
class Context(CacheOperations):
    """The main context of a Llama. It stops where its request was cancelled."""

    turns: Turns

    def dynamic_state(self) -> DynamicState:
        """Return the state of dynamic scaling."""
        return dynamic_state(self.ctx)

    def n_ubatch(self) -> int:
        """Return the tokens that the library computes at once."""
        return llama_cpp.llama_n_ubatch(self.ctx)

    def last_position(self) -> int:
        """Return the last cached position, or -1."""
        return llama_cpp.llama_memory_seq_pos_max(self.memory, 0)

    def first_position(self) -> int:
        """Return the first cached position, or -1."""
        return llama_cpp.llama_memory_seq_pos_min(self.memory, 0)

    def decode(self, batch: LlamaBatch) -> None:
        """Compute a batch. Raises Cancelled, with nothing computed; YarnGGUFError; RuntimeError."""
        self.turns.check_cancelled()
        if self.model.params.vocab_only:
            raise YarnGGUFError(f"{self.model.path_model} was loaded with vocab_only: it can tokenize alone")
        if self.is_at_once and batch.n_tokens() > self.n_ubatch():
            raise YarnGGUFError(
                f"{batch.n_tokens()} tokens, whose attention is not causal, have to be read at once, "
                f"and n_ubatch is {self.n_ubatch()}: make it as large as n_batch"
            )
        with deferred_exceptions():
            super().decode(batch)

    @property
    def is_at_once(self) -> bool:
        """Whether a token sees the tokens after it, which have to be read with it."""
        return self.memory is None or self.params.attention_type == llama_cpp.LLAMA_ATTENTION_TYPE_NON_CAUSAL

    def kv_cache_seq_rm(self, seq_id: int, p0: int, p1: int) -> bool:
        """Remove cells; return whether that was done, and a text that is cut at p0 can go on.

        Raises YarnGGUFError for a model without a cache.
        """
        if self.memory is None:
            raise YarnGGUFError(f"{self.model.path_model}: there is no cache, so nothing can be generated")
        last = self.last_position() if p1 < 0 < p0 else p0
        if last < p0 - 1:  # fewer cells than tokens
            return False
        is_cut = p1 < 0 < p0 <= last
        done = super().kv_cache_seq_rm(seq_id, p0, p1)
        if not (done and is_cut):
            return done
        window = llama_cpp.llama_model_n_swa(self.model.model)
        return 0 <= self.first_position() <= max(0, p0 - max(window, 1))


class Batch(LlamaBatch):
    """The batch of a Llama. Without a token, LlamaBatch would write in front of the library's memory."""

    def add_sequence(self, batch: Sequence[int], seq_id: int, logits_all: bool) -> None:
        """Add the tokens of a text. Raises YarnGGUFError if there are none."""
        if not batch:
            raise YarnGGUFError("a text to embed has no tokens: leave it out")
        super().add_sequence(batch, seq_id, logits_all)


class Closed:
    """Stands in the place of a closed Llama's parts: a use of them would end the process."""

    def __getattr__(self, name: str) -> Any:
        raise YarnGGUFError(CLOSED)


def bytes_of(model: LlamaModel, token: int, spaces: int = 0, *, special: bool = False) -> bytes:
    """Return the text of a token, without `spaces` spaces in front. It may have more than 32 bytes."""
    buffer = ctypes.create_string_buffer(32)
    size = llama_cpp.llama_token_to_piece(model.vocab, token, buffer, len(buffer), spaces, special)
    if size < 0:
        buffer = ctypes.create_string_buffer(-size)
        size = llama_cpp.llama_token_to_piece(model.vocab, token, buffer, len(buffer), spaces, special)
    return buffer.raw[:size]
