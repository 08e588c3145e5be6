"""A mean with its standard error and its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TAIL_95 = 0.025  # the probability on either side of a 95% confidence interval
_BLOCK = 256  # positions in a block of neighbours, at most
_MIN_BLOCKS = 8


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error (NaN for a single value), and the degrees of freedom of that error."""

    mean: float
    standard_error: float
    degrees_of_freedom: float

    @classmethod
    def of(cls, values: np.ndarray | Sequence[float]) -> Estimate:
        """Return the estimate from independent values."""
        count = len(values)
        error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
        return cls(float(np.mean(values)), error, count - 1)

    @classmethod
    def of_neighbours(cls, values: np.ndarray) -> Estimate:
        """Return the estimate from values at consecutive positions, averaged in blocks of up to 256.

        The standard error comes from the differences of adjacent blocks alone (von Neumann, 1941). So a
        trend, such as a scaling that fails more and more with the position, does not count as uncertainty.
        The degrees of freedom are those of the chi-square with the same mean and variance.
        """
        count = max(min(_MIN_BLOCKS, len(values)), len(values) // _BLOCK)
        blocks = np.array([block.mean() for block in np.array_split(values, count)])
        mean = float(np.mean(values))
        if count == 1:
            return cls(mean, math.nan, 0)
        error = math.sqrt(np.mean(np.diff(blocks) ** 2) / 2 / count)
        return cls(mean, error, 2 * (count - 1) ** 2 / (3 * count - 4))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval: its lower and its upper end."""
        margin = self.margin(TAIL_95)
        return self.mean - margin, self.mean + margin

    def margin(self, tail: float) -> float:
        """Return the one-sided margin of error at the level `tail`, by Student's t.

        NaN without degrees of freedom.
        """
        from scipy.special import stdtrit  # slow to import

        if self.degrees_of_freedom <= 0:
            return math.nan
        return float(stdtrit(self.degrees_of_freedom, 1 - tail)) * self.standard_error
