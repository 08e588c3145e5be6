"""The text in a cache: the one place that knows which tokens a context has read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Cells(Protocol):
    """The cache of a context, as the library has it. handles.Context is one."""

    def kv_cache_seq_rm(self, seq_id: int, p0: int, p1: int) -> bool:
        """Remove cells from position p0 on; return whether a text that ends there can go on."""

    def kv_cache_clear(self) -> None:
        """Remove all cells."""

    def last_position(self) -> int:
        """Return the last cached position, or -1."""


class CachedText:
    """The tokens that a context has cached, from position 0 on. Owned by a Llama.

    Everyone asks here, and everyone who changes the cache says so here. The text may be shorter than the
    library's cells, after a cut: `cut_or_forget` removes these before the next tokens are read.

    certain: tokens up to here were read or accepted. Later ones are draft tokens that a draft model proposed.
    has_logits: whether the library has the logits of the last token.
    has_scores: whether the Llama has the logits of every token (under logits_all).
    """

    def __init__(self, cells: Cells | None = None, capacity: int = 0) -> None:
        """capacity: tokens that fit (n_ctx)."""
        self._cells = cells
        self.buffer = np.empty(capacity, np.intc)  # llama_cpp.Llama's input_ids
        self._length = 0
        self._certain = 0
        self.has_logits = False
        self.has_scores = True

    def __len__(self) -> int:
        return self._length

    @property
    def tokens(self) -> np.ndarray:
        """The tokens: int32 (tokens,), a view that later calls change."""
        return self.buffer[: self._length]

    @property
    def certain(self) -> int:
        """Tokens that are no draft tokens."""
        return self._certain

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return len(self.buffer)

    @property
    def room(self) -> int:
        """Tokens that still fit."""
        return self.capacity - self._length

    def match(self, tokens: Sequence[int] | np.ndarray) -> int:
        """Return the number of tokens with which this text and `tokens` begin (prefix match)."""
        return common_prefix(self.tokens, tokens)

    def extend(self, tokens: Sequence[int], drafts: int = 0) -> None:
        """Add `tokens`, which the context has just read. The last `drafts` of them are draft tokens."""
        assert len(tokens) <= self.room, "more tokens than the context holds"
        assert 0 <= drafts <= len(tokens)
        if self._certain == self._length:  # else draft tokens lie before these
            self._certain += len(tokens) - drafts
        self.buffer[self._length : self._length + len(tokens)] = tokens
        self._length += len(tokens)
        self.has_logits = True

    def accept(self, length: int) -> None:
        """Take the first `length` tokens for certain: a sampler, or a new prompt, agrees with them."""
        self._certain = max(self._certain, min(length, self._length))

    def cut(self, length: int) -> None:
        """Let the text end after `length` tokens."""
        assert 0 <= length <= self._length, "a cut cannot lengthen the text"
        if length < self._length:
            self.has_logits = False
        self._length = length
        self._certain = min(self._certain, length)

    def drop_drafts(self) -> None:
        """Drop draft tokens that were proposed but not accepted (the answer was abandoned)."""
        self.cut(self._certain)

    def forget(self) -> None:
        """Empty the text and the cache."""
        self.cut(0)
        self.has_scores = True
        if self._cells is not None:
            self._cells.kv_cache_clear()

    def restore(self, length: int) -> None:
        """Take the first `length` tokens of `buffer` for the text: the cache was filled from elsewhere."""
        assert 0 <= length <= self.capacity
        self._length = self._certain = length
        self.has_logits = False

    def trim(self) -> bool:
        """Remove cells behind the text. Return False if the cache cannot be cut there."""
        assert self._cells is not None
        return self._cells.kv_cache_seq_rm(-1, self._length, -1)

    def cut_or_forget(self) -> list[int]:
        """Remove cells behind the text, or all of them; return the tokens to read again.

        A cache cannot be cut where it has recurrent layers, or where it is as small as a sliding window and
        has lost what the text needs. Then the text is forgotten, and its tokens are returned.
        """
        if self.trim():
            return []
        earlier = self.tokens.tolist()
        has_scores = self.has_scores
        self.forget()
        self.has_scores = has_scores
        return earlier

    def recount(self) -> None:
        """Keep the tokens that the library still has, after it failed or a signal came.

        It empties its cache where a rotation or a state was begun and not finished.
        """
        assert self._cells is not None
        self.cut(min(self._length, self._cells.last_position() + 1))
        self.has_logits = False


def common_prefix(a: Sequence[int] | np.ndarray, b: Sequence[int] | np.ndarray) -> int:
    """Return the number of tokens with which both texts begin (prefix match)."""
    length = min(len(a), len(b))
    differs = np.flatnonzero(np.asarray(a[:length]) != np.asarray(b[:length]))
    return int(differs[0]) if len(differs) else length


def common_prefix_of_lists(a: list[int], b: list[int]) -> int:
    """Return common_prefix of two lists: 30 times as fast for 800 tokens, which NumPy would convert first."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
