"""Which scaling has less loss, and whether the difference is significant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from yarn_gguf.evaluate.statistics.estimate import TAIL_95, Estimate
from yarn_gguf.evaluate.statistics.positions import position_ranges

Losses = Sequence[np.ndarray]  # one array for each document


class Difference(Estimate):
    """A paired difference of losses, in nats."""

    def is_significant(self, comparisons: int) -> bool:
        """Return whether it is above 0 at the level of 2.5%.

        comparisons: the number of differences of which this is the largest. The level is divided by it
        (multiple comparisons, Bonferroni).
        """
        return self.mean > self.margin(TAIL_95 / max(1, comparisons))


def mean_loss(losses: Losses, edges: Sequence[int]) -> float:
    """Return the mean over the ranges [edges[i], edges[i + 1]), each with equal weight.

    The loss of a range is the mean over the documents.
    """
    return float(np.mean([each.loss for each in position_ranges(losses, edges)]))


def difference(one: Losses, other: Losses, edges: Sequence[int]) -> Difference:
    """Return mean_loss(one) - mean_loss(other), on the documents that both have read.

    The variance within documents comes from blocks of up to 256 positions in each range of each document.
    If the variance over documents is larger, the excess is added as a component between documents. The
    degrees of freedom are those of the sum (Welch and Satterthwaite): few documents that differ leave few.
    """
    pairs = [mine - theirs for mine, theirs in zip(one, other)]  # noqa: B905
    ranges = [each.estimate for pair in pairs for each in position_ranges([pair], edges)]
    over_documents = Estimate.of([mean_loss([pair], edges) for pair in pairs])
    within = [(each.standard_error / len(ranges)) ** 2 for each in ranges]
    between = max(0.0, np.nan_to_num(over_documents.standard_error**2) - sum(within))
    variances = np.array([*within, between])
    freedoms = [*(each.degrees_of_freedom for each in ranges), max(1, over_documents.degrees_of_freedom)]
    with np.errstate(invalid="ignore"):  # 0 / 0 where two scalings do not differ at all
        freedom = variances.sum() ** 2 / (variances**2 / np.array(freedoms)).sum()
    return Difference(over_documents.mean, math.sqrt(variances.sum()), float(freedom))


def choose(losses: Mapping[str, Losses], edges: Sequence[int], comparisons: int) -> str:
    """Return the first name whose loss does not differ significantly from the smallest.

    Give the simplest first. comparisons: the number of names among which the best was found, less one.
    """
    best = min(losses, key=lambda name: mean_loss(losses[name], edges))
    return next(
        name
        for name, each in losses.items()
        if name == best or not difference(each, losses[best], edges).is_significant(comparisons)
    )
