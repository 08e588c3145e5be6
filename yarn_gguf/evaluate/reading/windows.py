"""Several short texts read at once, each from its beginning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from yarn_gguf.evaluate.reading.cross_entropy import cross_entropy
from yarn_gguf.evaluate.reading.sequences import SequenceContext

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama


class Windows:
    """A context for `parallel` texts of `length` tokens, on the weights of `llama`, with its rope scaling.

    Call close() when done. Raises ModelLoadError, RopeScalingError.
    """

    def __init__(self, llama: Llama, length: int, parallel: int = 1) -> None:
        self._reader = SequenceContext(llama, length, parallel)

    def close(self) -> None:
        self._reader.close()

    def losses(self, texts: Sequence[Sequence[int]], counts: Sequence[int]) -> list[np.ndarray]:
        """Return the losses of the last `counts` tokens of each text: float64, nats.

        The texts are equally long.
        """
        self._reader.context.kv_cache_clear()
        tokens = np.asarray(texts, np.int32)
        length, step = tokens.shape[1], max(1, self._reader.n_tokens // len(tokens))
        self._reader.reserve(length)
        first = length - 1 - np.asarray(counts)  # the position that predicts the first counted token
        losses: list[list[np.ndarray]] = [[] for _ in tokens]
        for start in range(0, length, step):
            positions = np.arange(start, min(start + step, length))
            wanted = (positions >= first[:, None]) & (positions < length - 1)
            for i, logits in enumerate(self._decode(tokens[:, positions], positions, wanted)):
                targets = tokens[i, positions[wanted[i]] + 1]
                losses[i].append(cross_entropy(logits, targets, self._reader.n_threads))
        return [np.concatenate(each) for each in losses]

    def _decode(self, tokens: np.ndarray, positions: np.ndarray, wanted: np.ndarray) -> list[np.ndarray]:
        """Return the wanted logits of each text: float32 (count, n_vocab).

        tokens, wanted: (texts, positions).
        """
        sequences = np.repeat(np.arange(len(tokens)), len(positions))[:, None].tolist()
        everywhere = np.tile(positions, len(tokens))
        logits = self._reader.decode(tokens.ravel(), everywhere, sequences, wanted.ravel())
        return np.split(logits, np.cumsum(wanted.sum(axis=1))[:-1])
