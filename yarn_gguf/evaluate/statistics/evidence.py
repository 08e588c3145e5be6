"""What losses by position say of a scaling, and whether it differs from another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from yarn_gguf.evaluate.statistics.estimate import Estimate
from yarn_gguf.evaluate.statistics.positions import buckets

Losses = Sequence[np.ndarray]  # of each document


class Difference(Estimate):
    """Of paired differences of loss, nats."""

    def exceeds(self, tries: int) -> bool:
        """Whether it is positive beyond chance (2.5%), even as the largest of `tries` such differences."""
        return self.mean > self.reach(0.025 / max(1, tries))


def mean_loss(losses: Losses, edges: Sequence[int]) -> float:
    """The mean over documents of the mean over the parts [edges[i], edges[i + 1]), each of equal weight."""
    return float(np.mean([bucket.loss for bucket in buckets(losses, edges)]))


def difference(one: Losses, other: Losses, edges: Sequence[int]) -> Difference:
    """mean_loss(one) - mean_loss(other), on the documents that both have read.

    The error is that over blocks of up to 256 positions within the parts of each document; where that over
    the documents is larger, what it has beyond that is the documents'. Degrees of freedom are those of the
    two together, by Welch and Satterthwaite: few documents that differ leave few.
    """
    pairs = [mine - theirs for mine, theirs in zip(one, other)]  # noqa: B905
    parts = [part.estimate for each in pairs for part in buckets([each], edges)]
    over_documents = Estimate.of([mean_loss([each], edges) for each in pairs])
    by_blocks = [(part.error / len(parts)) ** 2 for part in parts]
    of_documents = max(0.0, np.nan_to_num(over_documents.error**2) - sum(by_blocks))
    squares = np.array([*by_blocks, of_documents])
    freedoms = np.array([*(part.freedom for part in parts), max(1, over_documents.freedom)])
    with np.errstate(invalid="ignore"):  # scalings that do not differ at all
        freedom = squares.sum() ** 2 / (squares**2 / freedoms).sum()
    return Difference(over_documents.mean, math.sqrt(squares.sum()), float(freedom))


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
