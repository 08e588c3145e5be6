"""A mean with its standard error, and the interval that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BLOCK, _BLOCKS = 256, 8  # positions, and the least number of blocks


@dataclass(frozen=True)
class Estimate:
    """error: the standard error of `mean`, with `freedom` degrees of freedom; NaN of a single value."""

    mean: float
    error: float
    freedom: float

    @classmethod
    def of(cls, values: np.ndarray | Sequence[float]) -> Estimate:
        """From values that are independent of each other."""
        count = len(values)
        error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
        return cls(float(np.mean(values)), error, count - 1)

    @classmethod
    def of_neighbours(cls, values: np.ndarray) -> Estimate:
        """From values at positions one after the other, in blocks of up to 256.

        The error is taken from neighbouring blocks alone (von Neumann, 1941; its degrees of freedom, those of
        chi-square with the same mean and variance): that a scaling fails more and more with the position is
        a trend, and no uncertainty.
        """
        count = max(min(_BLOCKS, len(values)), len(values) // _BLOCK)
        blocks = np.array([block.mean() for block in np.array_split(values, count)])
        mean = float(np.mean(values))
        if count == 1:
            return cls(mean, math.nan, 0)
        error = math.sqrt(np.mean(np.diff(blocks) ** 2) / 2 / count)
        return cls(mean, error, 2 * (count - 1) ** 2 / (3 * count - 4))

    @property
    def interval(self) -> tuple[float, float]:
        """95%."""
        reach = self.reach(0.025)
        return self.mean - reach, self.mean + reach

    def reach(self, tail: float) -> float:
        """How far above `mean` the true one lies with a chance of `tail`, by Student's t."""
        from scipy.special import stdtrit  # slow to import

        return float(stdtrit(self.freedom, 1 - tail)) * self.error if self.freedom > 0 else math.nan
