"""A context for several sequences, which are read in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.native.scaling import reserve_context
from yarn_gguf.native.signals import deferred_exceptions

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama


class SequenceContext:
    """A context on the weights of `llama`, with its rope scaling, and a batch of llama.n_batch tokens.

    n_ctx, n_seq_max, unified, longest: see Llama.make_context. The Llama's own context is not used. Call
    close() when done. Raises ModelLoadError, RopeScalingError.
    """

    def __init__(
        self,
        llama: Llama,
        n_ctx: int,
        n_seq_max: int,
        *,
        unified: bool = False,
        longest: int | None = None,
    ) -> None:
        from llama_cpp import _internals, llama_cpp  # bound to the library that `llama` has loaded

        self._llama_cpp, self._n_vocab, self.n_tokens = llama_cpp, llama.n_vocab(), llama.n_batch
        self.context = llama.make_context(n_ctx, n_seq_max, unified=unified, longest=longest)
        self.n_threads = llama.n_threads_batch
        self._is_by_request = llama.reserves_for_request
        self._batch = _internals.LlamaBatch(
            n_tokens=self.n_tokens, embd=0, n_seq_max=n_seq_max if unified else 1, verbose=False
        )

    def close(self) -> None:
        self._batch.close()
        self.context.close()

    def reserve(self, tokens: int) -> None:
        """Under the dynamic policy "request": set s to the least value that fits texts of `tokens` tokens."""
        if self._is_by_request:
            reserve_context(self.context.ctx, tokens)

    def decode(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        sequences: Sequence[Sequence[int]],
        wanted: np.ndarray,
    ) -> np.ndarray:
        """Read tokens, and return the logits at those that `wanted` marks: float32 (count, n_vocab).

        The next call overwrites them: the array is a view. tokens, positions, wanted: (tokens,). sequences:
        the sequences of each token, several only in a unified context. Raises YarnGGUFError.
        """
        batch, count = self._batch.batch, len(tokens)
        batch.n_tokens = count
        numbers = np.fromiter(map(len, sequences), np.int32, count)
        for name, values in (
            ("token", tokens),
            ("pos", positions),
            ("n_seq_id", numbers),
            ("logits", wanted),
        ):
            np.ctypeslib.as_array(getattr(batch, name), (count,))[:] = values
        for i, each in enumerate(sequences):
            for j, sequence in enumerate(each):
                batch.seq_id[i][j] = sequence
        with deferred_exceptions():
            failed = self._llama_cpp.llama_decode(self.context.ctx, batch)
        if failed:
            raise YarnGGUFError(f"{count} tokens could not be read: see the log of the native library above")
        rows = int(np.count_nonzero(wanted))
        logits = self._llama_cpp.llama_get_logits(self.context.ctx)
        return np.ctypeslib.as_array(logits, (max(1, rows), self._n_vocab))[:rows]
