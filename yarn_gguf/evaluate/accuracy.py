"""How often a model prefers the right answer, and by how much one scaling differs from another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mean:
    """value: of all questions. error: its standard error."""

    value: float
    error: float

    @classmethod
    def of(cls, values: np.ndarray) -> Mean:
        count = len(values)
        error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
        return cls(float(np.mean(values)), error)

    @property
    def interval(self) -> tuple[float, float]:
        """95%."""
        return self.value - 1.96 * self.error, self.value + 1.96 * self.error


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
