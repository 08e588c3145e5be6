"""What losses by position say of a scaling, and whether it differs from another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from yarn_gguf.evaluate.perplexity import buckets

Losses = Sequence[np.ndarray]  # of each document

_BLOCK, _BLOCKS = 256, 8  # positions, and the least number of blocks


@dataclass(frozen=True)
class Difference:
    """mean: of paired differences of loss, nats. error: its standard error."""

    mean: float
    error: float

    def exceeds(self, tries: int) -> bool:
        """Whether it is positive beyond chance (2.5%), even as the largest of `tries` such differences."""
        return self.mean > NormalDist().inv_cdf(1 - 0.025 / max(1, tries)) * self.error


def mean_loss(losses: Losses, edges: Sequence[int]) -> float:
    """The mean over documents of the mean over the parts [edges[i], edges[i + 1]), each of equal weight."""
    return float(np.mean([bucket.loss for bucket in buckets(losses, edges)]))


def difference(one: Losses, other: Losses, edges: Sequence[int]) -> Difference:
    """mean_loss(one) - mean_loss(other), on the documents that both have read.

    The error is that over the documents or that over blocks of up to 256 positions within the parts of each
    document, whichever is larger: a few documents may agree by chance.
    """
    pairs = [mine - theirs for mine, theirs in zip(one, other)]  # noqa: B905
    means = [mean_loss([each], edges) for each in pairs]
    errors = [_error(each[part.start : part.stop]) for each in pairs for part in buckets([each], edges)]
    by_blocks = math.hypot(*errors) / len(errors)
    by_documents = np.std(means, ddof=1) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    return Difference(float(np.mean(means)), max(by_blocks, float(by_documents)))


def choose(losses: Mapping[str, Losses], edges: Sequence[int], tries: int) -> str:
    """The first name from which the best does not differ; the simplest is to come first.

    tries: among how many the best is the best.
    """
    best = min(losses, key=lambda name: mean_loss(losses[name], edges))
    return next(
        name
        for name, each in losses.items()
        if name == best or not difference(each, losses[best], edges).exceeds(tries)
    )


def _error(values: np.ndarray) -> float:
    """The standard error of the mean, over blocks of positions.

    It is taken from neighbouring blocks alone (von Neumann, 1941): that a scaling fails more and more with
    the position is a trend, and no uncertainty.
    """
    count = max(min(_BLOCKS, len(values)), len(values) // _BLOCK)
    blocks = np.array([block.mean() for block in np.array_split(values, count)])
    return math.sqrt(np.mean(np.diff(blocks) ** 2) / 2 / count) if count > 1 else math.nan
