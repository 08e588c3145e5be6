"""Accuracy on a multiple-choice question, from the log-likelihoods of its choices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def accuracy(choices: Sequence[str], loglikelihoods: Sequence[float], label: int) -> dict[str, float]:
    """Return the metrics acc and acc_norm: 1 if the likeliest choice is the right one, `label`, else 0.

    acc compares log-likelihoods, acc_norm log-likelihoods per character. As in lm-evaluation-harness, the
    space before a choice is not counted.
    """
    sums = np.asarray(loglikelihoods)
    lengths = np.array([max(1, len(choice.removeprefix(" "))) for choice in choices])
    return {
        "acc": float(np.argmax(sums) == label),
        "acc_norm": float(np.argmax(sums / lengths) == label),
    }
