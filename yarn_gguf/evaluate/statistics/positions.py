"""Mean losses by position. Perplexity over a whole text hides a collapse beyond the trained context."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yarn_gguf.evaluate.statistics.estimate import Estimate


@dataclass(frozen=True)
class PositionRange:
    """The mean losses at positions [start, stop), in nats: one for each text, and the estimate over them."""

    start: int
    stop: int
    losses: tuple[float, ...]
    estimate: Estimate

    @property
    def loss(self) -> float:
        return self.estimate.mean

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval of the perplexity."""
        low, high = self.estimate.interval
        return math.exp(low), math.exp(high)


def position_ranges(losses: Sequence[np.ndarray], edges: Sequence[int]) -> list[PositionRange]:
    """Return the mean losses in each range [edges[i], edges[i + 1]), from the losses of each text.

    A range ends where the shortest text ends. The standard error is that over the texts; with a single text,
    that over neighbouring blocks of its positions.
    """
    reached = min(map(len, losses))
    pairs = [(low, min(high, reached)) for low, high in itertools.pairwise(edges) if low < min(high, reached)]
    return [_position_range(low, high, [each[low:high] for each in losses]) for low, high in pairs]


def bucket_perplexities(losses: np.ndarray, edges: Sequence[int]) -> list[float]:
    """Return exp(mean loss) in each range [edges[i], edges[i + 1])."""
    return [math.exp(np.mean(losses[low:high])) for low, high in itertools.pairwise(edges)]


def _position_range(start: int, stop: int, parts: Sequence[np.ndarray]) -> PositionRange:
    means = [float(part.mean()) for part in parts]
    estimate = Estimate.of(means) if len(parts) > 1 else Estimate.of_neighbours(parts[0])
    return PositionRange(start, stop, tuple(means), estimate)
