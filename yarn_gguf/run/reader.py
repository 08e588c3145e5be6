"""Read tokens into a cache, in pieces between which a request can end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from yarn_gguf.errors import Cancelled, NoRoomError
from yarn_gguf.run.cached_text import CachedText
from yarn_gguf.run.handles import Batch, Context


class Reader:
    """Lets a context read tokens, and tells its CachedText.

    n_batch: tokens of a batch. scores: float32 (n_ctx, n_vocab), for the logits of every token
    (logits_all); or None.
    """

    def __init__(
        self, context: Context, batch: Batch, text: CachedText, n_batch: int, scores: np.ndarray | None
    ) -> None:
        self._context, self._batch, self._text = context, batch, text
        self._n_batch, self._scores = n_batch, scores

    def require_room(self, count: int) -> None:
        """Raise NoRoomError if `count` tokens do not fit after the text."""
        if count > self._text.room:
            raise NoRoomError(
                f"{count} tokens do not fit: {len(self._text)} of {self._text.capacity} are used (n_ctx)"
            )

    def read(self, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Read `tokens` after the text. Yields (done, total) after each piece of n_ubatch tokens.

        `total` counts tokens that the cache has lost, too, which are read again first.
        """
        tokens, done = [*self._text.cut_or_forget(), *tokens], 0
        for piece in self._pieces(tokens):
            self._decode(piece)
            done += len(piece)
            yield done, len(tokens)

    def read_answer(self, tokens: Sequence[int]) -> None:
        """Read a sampled token and as many draft tokens after it as one batch holds.

        The logits of all are looked at together, and the library keeps those of the last batch alone.
        """
        self._read_again()
        piece = tokens[: self._n_batch]
        self._decode(piece, drafts=len(piece) - 1)

    def read_logits(self, tokens: Sequence[int], copy: bool) -> Iterator[np.ndarray]:
        """Read `tokens` after the text and yield the logits of each piece: float32 (tokens, n_vocab).

        copy: into one buffer that the next piece overwrites; else the library's own memory.
        """
        self._read_again()
        buffer = None
        for piece in self._pieces(tokens):
            self._decode(piece, wants_all=True)
            logits = self._logits(len(piece))
            if copy:  # who closes the Llama before the next step frees the library's
                buffer = np.empty_like(logits) if buffer is None else buffer
                buffer[: len(piece)] = logits
                logits = buffer[: len(piece)]
            yield logits

    def _read_again(self) -> None:
        """Remove the cells behind a text that was cut. If the cache cannot be cut, read the text again."""
        if self._context.last_position() >= len(self._text):
            for _ in self.read([]):
                pass

    def _decode(self, piece: Sequence[int], drafts: int = 0, wants_all: bool = False) -> None:
        start, wants_scores = len(self._text), self._scores is not None
        self._batch.set_batch(batch=piece, n_past=start, logits_all=wants_all or wants_scores)
        with self.recounting():
            self._context.decode(self._batch)
        self._text.extend(piece, drafts)
        if self._scores is not None:
            self._scores[start : start + len(piece)] = self._logits(len(piece))

    def _logits(self, count: int) -> np.ndarray:
        shape = count, self._context.model.n_vocab()
        return np.ctypeslib.as_array(self._context.get_logits(), shape=shape)

    def _pieces(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """Yield as many tokens at a time as the library computes at once."""
        size = self._n_batch
        if not self._context.is_at_once:
            size = min(size, self._context.n_ubatch())
        for start in range(0, len(tokens), size):
            yield tokens[start : start + size]

    @contextmanager
    def recounting(self) -> Iterator[None]:
        """Count the tokens again if the library fails or a signal comes: a piece may be half read."""
        try:
            yield
        except Cancelled:  # nothing was begun
            raise
        except BaseException:
            self._text.recount()
            raise
