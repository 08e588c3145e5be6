"""Several short texts read at once, each from its beginning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from yarn_gguf.evaluate.reading.cross_entropy import cross_entropy
from yarn_gguf.evaluate.reading.sequences import Batch

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama


class Windows:
    """A context of its own for `parallel` texts of `length` tokens, on the weights of `llama`, scaled alike.

    To be closed. Raises ModelLoadError, RopeScalingError.
    """

    def __init__(self, llama: Llama, length: int, parallel: int = 1) -> None:
        self._batch = Batch(llama, length, parallel)

    def close(self) -> None:
        self._batch.close()

    def losses(self, texts: Sequence[Sequence[int]], counts: Sequence[int]) -> list[np.ndarray]:
        """Of the last `counts` tokens of each text, float64, nats. The texts are equally long."""
        self._batch.context.kv_cache_clear()
        texts = np.asarray(texts, np.int32)
        length, step = texts.shape[1], max(1, self._batch.n_tokens // len(texts))
        self._batch.reserve(length)
        first = length - 1 - np.asarray(counts)  # the position whose logits are the first that count
        losses: list[list[np.ndarray]] = [[] for _ in texts]
        for start in range(0, length, step):
            positions = np.arange(start, min(start + step, length))
            wanted = (positions >= first[:, None]) & (positions < length - 1)
            for i, logits in enumerate(self._decode(texts[:, positions], positions, wanted)):
                targets = texts[i, positions[wanted[i]] + 1]
                losses[i].append(cross_entropy(logits, targets, self._batch.n_threads))
        return [np.concatenate(each) for each in losses]

    def _decode(self, tokens: np.ndarray, positions: np.ndarray, wanted: np.ndarray) -> list[np.ndarray]:
        """The logits that are wanted, of each text: float32 (count, n_vocab).

        tokens, wanted: (texts, positions).
        """
        sequences = np.repeat(np.arange(len(tokens)), len(positions))[:, None].tolist()
        everywhere = np.tile(positions, len(tokens))
        logits = self._batch.decode(tokens.ravel(), everywhere, sequences, wanted.ravel())
        return np.split(logits, np.cumsum(wanted.sum(axis=1))[:-1])
