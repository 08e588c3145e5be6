"""Which answer a model prefers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def answers(choices: Sequence[str], loglikelihoods: Sequence[float], label: int) -> dict[str, float]:
    """Whether the likeliest choice is the right one: acc, by the sum; acc_norm, by the sum per character.

    As in lm-evaluation-harness: characters without the space before the choice.
    """
    sums = np.asarray(loglikelihoods)
    lengths = np.array([max(1, len(choice.removeprefix(" "))) for choice in choices])
    return {
        "acc": float(np.argmax(sums) == label),
        "acc_norm": float(np.argmax(sums / lengths) == label),
    }
