"""The loss of a prediction."""

from __future__ import annotations

import numpy as np

_ROWS = 64  # of logits that are worked on at once: their exponentials stay small, and in a cache


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-ln p(target) of each row, in nats.

    logits: float32 (rows, vocabulary). targets: whole numbers (rows,). Returns float64 (rows,).
    """
    losses = np.empty(len(targets))
    for start in range(0, len(targets), _ROWS):
        rows, wanted = logits[start : start + _ROWS], targets[start : start + _ROWS]
        highest = rows.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(rows - highest).sum(axis=1, dtype=np.float64)) + highest[:, 0]
        losses[start : start + _ROWS] = log_sum - rows[np.arange(len(wanted)), wanted]
    return losses
