"""Paired differences of losses: their standard errors, and when they are significant."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from yarn_gguf.evaluate.statistics.evidence import Difference, choose, difference, mean_loss


def test_the_mean_loss_weights_both_ranges_equally() -> None:
    losses = np.concatenate([np.full(8192, 2.0), np.full(4095, 5.0)])
    assert mean_loss([losses], [0, 8192, 12288]) == 3.5
    assert mean_loss([losses, losses + 1], [0, 8192, 12288]) == 4


def test_a_difference_is_paired_and_its_standard_error_is_that_over_documents() -> None:
    rng = np.random.default_rng(0)
    documents = [rng.normal(size=1000) * 5 for _ in range(4)]  # the shared part cancels out
    shifts = [0.1, 0.2, 0.3, 0.4]
    found = difference(
        [each + shift for each, shift in zip(documents, shifts, strict=True)], documents, [0, 600, 1000]
    )
    assert found.mean == pytest.approx(0.25)
    assert found.standard_error == pytest.approx(np.std(shifts, ddof=1) / 2)


def test_the_standard_error_of_one_document_is_that_over_blocks_within_its_ranges() -> None:
    blocks = np.random.default_rng(0).normal(size=24)
    blocks[16:] += 100  # the difference between the ranges is no error
    found = difference([np.repeat(blocks, 256)], [np.zeros(24 * 256)], [0, 16 * 256, 24 * 256])
    squares = [sum((b - a) ** 2 for a, b in itertools.pairwise(part)) for part in (blocks[:16], blocks[16:])]
    first, second = squares[0] / 2 / 15 / 16, squares[1] / 2 / 7 / 8
    assert found.standard_error == pytest.approx(math.sqrt(first + second) / 2)
    assert found.mean == pytest.approx((blocks[:16].mean() + blocks[16:].mean()) / 2)


def test_a_failure_that_grows_with_the_position_is_significant() -> None:
    """The standard error is the same without the trend: that over independent blocks."""
    noise, trend = np.random.default_rng(0).normal(size=256 * 64), np.linspace(0, 3, 256 * 64)
    without, found = (
        difference([each], [np.zeros(256 * 64)], [0, 256 * 64]) for each in (noise, noise + trend)
    )
    assert without.standard_error == pytest.approx(1 / 128, rel=0.25)
    assert found.standard_error == pytest.approx(without.standard_error, rel=0.25)
    assert found.is_significant(1000)


def test_two_documents_that_agree_by_chance_keep_the_standard_error_of_their_blocks() -> None:
    noise = [np.random.default_rng(i).normal(size=4096) for i in range(2)]
    noise = [each - each.mean() + 0.1 for each in noise]
    found = difference(noise, [np.zeros(4096)] * 2, [0, 4096])
    assert found.mean == pytest.approx(0.1)
    assert found.standard_error == pytest.approx(1 / math.sqrt(2 * 4096), rel=0.3)


def test_a_difference_must_be_larger_after_more_comparisons() -> None:
    many = 1e6  # degrees of freedom
    assert Difference(2.0, 1.0, many).is_significant(1)
    assert not Difference(2.0, 1.0, many).is_significant(2)
    assert not Difference(1.9, 1.0, many).is_significant(1)
    assert Difference(3.1, 1.0, many).is_significant(20)
    assert not Difference(3.1, 1.0, 10).is_significant(20)
    assert not Difference(0.0, 0.0, many).is_significant(1)
    assert not Difference(1.0, math.nan, 0).is_significant(1)


def test_the_degrees_of_freedom_of_all_ranges_and_documents_add_up() -> None:
    """By Welch and Satterthwaite: between those of the least known range and the sum."""
    documents = [np.random.default_rng(i).normal(size=12288) for i in range(3)]
    found = difference(documents, [np.zeros(12288)] * 3, [0, 8192, 12288])
    of_ranges = [2 * (count - 1) ** 2 / (3 * count - 4) for count in (32, 16)]
    assert of_ranges[1] < found.degrees_of_freedom < 3 * sum(of_ranges)


def test_the_simplest_without_a_significant_difference_is_chosen() -> None:
    rng = np.random.default_rng(0)
    text = rng.normal(size=4096)

    def losses(shift: float) -> list[np.ndarray]:
        return [text + shift + rng.normal(size=4096) * 0.1]  # the standard error of a difference: 0.002

    edges = [0, 4096]
    assert choose({"a": losses(0.1), "b": losses(0), "c": losses(-0.001)}, edges, 2) == "b"
    assert choose({"a": losses(0.001), "b": losses(0), "c": losses(-0.001)}, edges, 2) == "a"
    assert choose({"a": losses(0.1), "b": losses(0), "c": losses(-0.1)}, edges, 2) == "c"


def test_noise_is_not_advised() -> None:
    """Among 40 equal scalings, the best is the best by chance: the default is chosen."""
    chosen = []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        alike = {str(i): [rng.normal(size=8192)] for i in range(40)}
        chosen.append(choose(alike, [0, 8192], 39))
    assert chosen.count("0") >= 46
