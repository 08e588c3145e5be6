"""Several short texts read at once, each from its beginning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.evaluate.cross_entropy import cross_entropy

if TYPE_CHECKING:
    from yarn_gguf.llama import Llama


class Windows:
    """A context of its own for `parallel` texts of `length` tokens, on the weights of `llama`, scaled alike.

    To be closed. Raises ModelLoadError, RopeScalingError.
    """

    def __init__(self, llama: Llama, length: int, parallel: int = 1) -> None:
        from llama_cpp import _internals, llama_cpp  # with the library that `llama` has loaded

        self._llama_cpp, self._n_vocab, self._n_batch = llama_cpp, llama.n_vocab(), llama.n_batch
        self._context = llama.make_context(length, parallel)
        self._batch = _internals.LlamaBatch(n_tokens=self._n_batch, embd=0, n_seq_max=1, verbose=False)

    def close(self) -> None:
        self._batch.close()
        self._context.close()

    def losses(self, texts: Sequence[Sequence[int]], counts: Sequence[int]) -> list[np.ndarray]:
        """Of the last `counts` tokens of each text, float64, nats. The texts are equally long."""
        self._context.kv_cache_clear()
        texts = np.asarray(texts, np.int32)
        length, step = texts.shape[1], max(1, self._n_batch // len(texts))
        first = length - 1 - np.asarray(counts)  # the position whose logits are the first that count
        losses: list[list[np.ndarray]] = [[] for _ in texts]
        for start in range(0, length, step):
            positions = np.arange(start, min(start + step, length))
            wanted = (positions >= first[:, None]) & (positions < length - 1)
            for i, logits in enumerate(self._decode(texts[:, positions], positions, wanted)):
                targets = texts[i, positions[wanted[i]] + 1]
                losses[i].append(cross_entropy(logits, targets))
        return [np.concatenate(each) for each in losses]

    def _decode(self, tokens: np.ndarray, positions: np.ndarray, wanted: np.ndarray) -> list[np.ndarray]:
        """The logits that are wanted, of each text: float32 (count, n_vocab).

        tokens, wanted: (texts, positions).
        """
        batch, count = self._batch.batch, tokens.size
        batch.n_tokens = count
        for name, values in (
            ("token", tokens.ravel()),
            ("pos", np.tile(positions, len(tokens))),
            ("n_seq_id", np.ones(count)),
            ("logits", wanted.ravel()),
        ):
            np.ctypeslib.as_array(getattr(batch, name), (count,))[:] = values
        for i in range(count):
            batch.seq_id[i][0] = i // len(positions)
        if self._llama_cpp.llama_decode(self._context.ctx, batch):
            raise YarnGGUFError(f"{count} tokens could not be read: the native library says why above")
        numbers = wanted.sum(axis=1)
        logits = np.ctypeslib.as_array(
            self._llama_cpp.llama_get_logits(self._context.ctx), (max(1, numbers.sum()), self._n_vocab)
        )
        return np.split(logits[: numbers.sum()], np.cumsum(numbers)[:-1])
