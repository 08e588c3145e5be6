"""Means with standard errors and confidence intervals: against scipy, and their coverage in simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from yarn_gguf.evaluate.statistics.estimate import Estimate
from yarn_gguf.evaluate.statistics.positions import position_ranges

BLOCK = 256


@pytest.mark.parametrize("count", [2, 6, 12, 1000])
def test_the_interval_of_independent_values_is_that_of_the_t_test(count: int) -> None:
    values = np.random.default_rng(count).normal(3, 2, count)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert Estimate.of(values).interval == pytest.approx((expected.low, expected.high))


def test_the_standard_error_of_a_single_value_is_unknown() -> None:
    for estimate in (Estimate.of([2.0]), Estimate.of_neighbours(np.array([2.0]))):
        assert estimate.mean == 2
        assert math.isnan(estimate.standard_error)
        assert all(map(math.isnan, estimate.interval))


@pytest.mark.parametrize("blocks", [8, 12, 48])
def test_the_interval_of_neighbours_covers_the_mean_19_times_out_of_20(blocks: int) -> None:
    """With and without a trend. A plain t test would count the trend as uncertainty."""
    rng = np.random.default_rng(blocks)
    trend = np.repeat(np.linspace(-1, 1, blocks) * 0.2, BLOCK)
    for shape in (0.0, 1.0):
        covered = 0
        for _ in range(2000):
            noise = np.repeat(rng.normal(size=blocks), BLOCK)
            low, high = Estimate.of_neighbours(noise + shape * trend).interval
            covered += low <= 0 <= high
        assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def test_a_trend_does_not_add_to_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=64 * BLOCK)
    for trend in (0, np.linspace(0, 3, len(values))):
        assert Estimate.of_neighbours(values + trend).standard_error == pytest.approx(1 / 128, rel=0.25)


def test_several_texts_are_the_independent_values() -> None:
    texts = [np.full(300, 1.0), np.full(200, 3.0), np.full(400, 2.0)]
    first, last = position_ranges(texts, [0, 100, 1000])
    assert (first.start, first.stop, last.start, last.stop) == (0, 100, 100, 200)
    assert first.losses == (1, 3, 2)
    assert first.estimate == Estimate(2.0, 1 / math.sqrt(3), 2)
    assert first.perplexity == pytest.approx(math.exp(2))
    reach = stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert first.interval == pytest.approx((math.exp(2 - reach), math.exp(2 + reach)))
