"""The loss of predictions: cross-entropy in nats."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

_ROWS = 16  # rows of logits that a thread works on at once: their exponentials fit in the CPU cache


def cross_entropy(logits: np.ndarray, targets: np.ndarray, n_threads: int) -> np.ndarray:
    """Return -ln p(target) of each row, in nats: float64 (rows,). Runs on `n_threads` threads.

    logits: float32 (rows, vocabulary). targets: integers (rows,).
    """
    losses = np.empty(len(targets))

    def work(start: int) -> None:
        part = slice(start, start + _ROWS)
        losses[part] = _losses(logits[part], targets[part])

    with ThreadPoolExecutor(n_threads) as pool:  # numpy releases the GIL
        list(pool.map(work, range(0, len(targets), _ROWS)))
    return losses


def _losses(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    highest = rows.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(rows - highest).sum(axis=1, dtype=np.float64)) + highest[:, 0]
    return log_sum - rows[np.arange(len(wanted)), wanted]
