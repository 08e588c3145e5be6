"""Mean losses by position. Perplexity over a whole text hides a collapse beyond the trained context."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yarn_gguf.evaluate.statistics.estimate import Estimate


@dataclass(frozen=True)
class Bucket:
    """Positions [start, stop). losses: the mean of each text, nats. estimate: of their mean."""

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
        """Of perplexity, 95%."""
        low, high = self.estimate.interval
        return math.exp(low), math.exp(high)


def buckets(losses: Sequence[np.ndarray], edges: Sequence[int]) -> list[Bucket]:
    """The mean loss in each [edges[i], edges[i + 1]) that all texts reach, from the losses of each text.

    The error is that over the texts; of a single text, that over its neighbouring blocks of positions.
    """
    reached = min(map(len, losses))
    pairs = [(low, min(high, reached)) for low, high in itertools.pairwise(edges) if low < min(high, reached)]
    return [_bucket(low, high, [each[low:high] for each in losses]) for low, high in pairs]


def bucket_perplexities(losses: np.ndarray, edges: Sequence[int]) -> list[float]:
    """exp(mean loss) of the positions in each [edges[i], edges[i + 1])."""
    return [math.exp(np.mean(losses[low:high])) for low, high in itertools.pairwise(edges)]


def _bucket(start: int, stop: int, parts: Sequence[np.ndarray]) -> Bucket:
    means = [float(part.mean()) for part in parts]
    estimate = Estimate.of(means) if len(parts) > 1 else Estimate.of_neighbours(parts[0])
    return Bucket(start, stop, tuple(means), estimate)
