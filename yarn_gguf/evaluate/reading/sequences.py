"""Tokens of several texts, read at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.native.scaling import reserve_context

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama


class Batch:
    """A context of its own on the weights of `llama`, scaled alike, and a batch of llama.n_batch tokens.

    n_ctx, n_seq_max, unified, longest: as Llama.make_context's. To be closed. Raises ModelLoadError,
    RopeScalingError.
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
        from llama_cpp import _internals, llama_cpp  # with the library that `llama` has loaded

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
        """Under the policy "request": from now on s suffices for texts of `tokens`, and is no larger."""
        if self._is_by_request:
            reserve_context(self.context.ctx, tokens)

    def decode(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        sequences: Sequence[Sequence[int]],
        wanted: np.ndarray,
    ) -> np.ndarray:
        """The logits that are wanted: float32 (count, n_vocab), a view that the next call overwrites.

        tokens, positions, wanted: (tokens,). sequences: those that each token belongs to; more than one if
        the context is unified. Raises YarnGGUFError.
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
        if self._llama_cpp.llama_decode(self.context.ctx, batch):
            raise YarnGGUFError(f"{count} tokens could not be read: the native library says why above")
        rows = int(np.count_nonzero(wanted))
        logits = self._llama_cpp.llama_get_logits(self.context.ctx)
        return np.ctypeslib.as_array(logits, (max(1, rows), self._n_vocab))[:rows]
