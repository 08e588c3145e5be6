"""Successive halving on made-up losses, of which the smallest is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from yarn_gguf import DynamicScaling, RopeScaling, RopeScalingError, YarnGGUFError
from yarn_gguf.evaluate.search.candidates import Candidate, Space
from yarn_gguf.evaluate.search.halving import Measurement, Search, TooSlowError, search

SPACE = Space(64, 1e5, 8192, 12288)

BEST = DynamicScaling.of("yarn", original_max_position_embeddings=8192, beta_fast=11.3, beta_slow=2.0)


def made_up(candidate: Candidate) -> float:
    """Return a loss: smallest for BEST, and rising with the logarithm of each value's distance."""
    scaling = candidate.scaling
    if scaling.method == "none":
        return 3.0
    loss = 1.0 + {"yarn": 0, "by-parts": 0.03, "ntk": 0.2, "linear": 0.1}[scaling.method]
    static, best = SPACE.static_of(scaling), SPACE.static_of(BEST)
    loss += 0.02 * abs(math.log2(static.beta_fast / best.beta_fast))
    loss += 0.02 * abs(math.log2(static.beta_slow / best.beta_slow))
    loss += 0.01 * (static.ramp != best.ramp)
    if isinstance(scaling, RopeScaling):
        loss += 0.05 + 0.1 * math.log(scaling.factor / 1.5) + abs(scaling.temperature() - 1.04)
    return loss


class Made:
    """Measures a made-up loss. Each document adds its own part, and chance adds `noise`."""

    def __init__(self, noise: float = 0.0, seconds: Callable[[int], float] = lambda count: 10.0) -> None:
        self.noise, self.seconds, self.read = noise, seconds, []

    def __call__(self, candidate: Candidate, number: int, limit: float) -> Measurement:
        self.read.append((candidate.name, number))
        chance = np.random.default_rng([number, len(self.read)]).normal()
        loss = made_up(candidate) + 0.5 * math.sin(number) + self.noise * chance
        return Measurement(np.array([loss]), self.seconds(len(self.read)))


def made_search(made: Made, documents: int, budget: float, space: Space = SPACE) -> Search:
    return search(
        space.references(), space.first(), space.around, documents, budget, made, lambda losses: losses[0]
    )


def test_the_search_finds_the_best_of_made_up_losses() -> None:
    found = made_search(Made(), 8, 5000)
    best = min(found.finalists, key=found.score)
    assert made_up(best) == pytest.approx(1.0, abs=1e-9), best.name


@pytest.mark.parametrize("documents", [1, 2, 30])
def test_a_larger_budget_finds_less_loss(documents: int) -> None:
    found = [made_search(Made(), documents, budget) for budget in (60, 200, 800, 4000)]
    losses = [min(map(made_up, each.finalists)) for each in found]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 0.03


def test_more_documents_reduce_the_effect_of_chance() -> None:
    """The noise of a document is four times the difference between neighbours of the best."""
    few, many = (
        [made_up(min(each.finalists, key=each.score)) for each in searches]
        for searches in (
            [made_search(Made(noise=0.08 + i / 1e6), 1, 4000) for i in range(10)],
            [made_search(Made(noise=0.08 + i / 1e6), 64, 4000) for i in range(10)],
        )
    )
    assert np.mean(many) < np.mean(few)
    assert np.mean(many) < 1.06  # plain YaRN: 1.11, dynamic: 1.06


@pytest.mark.parametrize("documents", [1, 3, 16])
@pytest.mark.parametrize("budget", [35, 70, 110, 500, 3000])
def test_the_budget_is_kept(documents: int, budget: float) -> None:
    made = Made()
    found = made_search(made, documents, budget)
    assert found.seconds == 10 * len(made.read) <= budget
    assert found.readings == len(made.read)


@pytest.mark.parametrize("documents", [1, 2, 16])
def test_the_rest_of_a_budget_is_less_than_another_candidate_takes(documents: int) -> None:
    for budget in range(30, 500, 10):
        found = made_search(Made(), documents, budget)
        assert budget - found.seconds < 10 * found.documents, budget


def test_a_large_budget_is_used_and_a_search_ends_by_itself() -> None:
    assert made_search(Made(), 64, 3000).seconds > 2900
    assert made_search(Made(), 1, 1e9).seconds < 3000


def test_the_plan_follows_the_pace() -> None:
    """From the eighth measurement on, each takes three times as long, or a third of the time."""
    slower = made_search(Made(seconds=lambda count: 10.0 if count < 8 else 30.0), 8, 600)
    assert 480 < slower.seconds <= 600 and slower.pace == 30
    quicker = made_search(Made(seconds=lambda count: 30.0 if count < 8 else 10.0), 8, 600)
    assert 570 < quicker.seconds <= 600 and quicker.pace == 10


@pytest.mark.parametrize("budget", [30, 45, 120, 450, 2000])
def test_all_finalists_have_read_the_same_documents_and_the_references_are_among_them(budget) -> None:
    made = Made()
    found = made_search(made, 16, budget)
    assert [each.name for each in found.finalists[:3]] == ["none", "yarn:1.5", "dynamic-yarn"]
    for each in found.finalists:
        read = [number for name, number in made.read if name == each.name]
        assert read[: found.documents] == list(range(found.documents))
        assert len(read) == len(set(read))


def test_the_better_half_goes_on() -> None:
    made = Made()
    found = made_search(made, 2, 3 * 10 + 10 * 10 + 10 * 10)
    firsts = SPACE.first()[:10]
    kept = sorted(firsts, key=made_up)[:5]
    read = {name for name, number in made.read if number == 1}
    assert {each.name for each in kept} <= read
    assert not {each.name for each in firsts} - {each.name for each in kept} & read
    assert found.documents == 2


def test_postponed_candidates_are_tried_if_the_best_have_no_neighbours() -> None:
    """24 measurements after the references: 12 candidates, 9 for the better half, and 3 for one more."""
    made = Made()
    first = SPACE.first()
    search(SPACE.references(), first, lambda one, step: [], 2, 270, made, lambda losses: losses[0])
    assert list(dict.fromkeys(name for name, _ in made.read))[3:] == [each.name for each in first[:13]]


def test_a_sudden_slowness_ends_the_search_and_not_the_comparison() -> None:
    """From the twentieth measurement on, when the better half goes on, each takes ten times as long."""
    made = Made(seconds=lambda count: 10.0 if count < 20 else 100.0)
    found = made_search(made, 8, 500)
    assert 400 < found.seconds < 600
    for each in found.finalists:
        assert len(found.losses[each.name]) >= found.documents >= 1


def test_nothing_is_read_twice() -> None:
    made = Made()
    made_search(made, 4, 4000)
    assert len(made.read) == len(set(made.read))


def test_a_budget_too_small_for_the_references_is_refused_with_a_sufficient_one() -> None:
    made = Made()
    with pytest.raises(YarnGGUFError) as caught:
        made_search(made, 4, 29)
    assert "3 references: a reading takes about 10 s here, all of them 1 min" in str(caught.value)
    assert "Give 2 minutes (120 seconds) or more" in str(caught.value)
    assert len(made.read) == 1


def test_an_abandoned_measurement_raises_the_same_error() -> None:
    def read(candidate: Candidate, number: int, limit: float) -> Measurement:
        assert limit == 20
        raise TooSlowError(100)

    with pytest.raises(YarnGGUFError, match=r"about 100 s here, all of them 5 min.* 15 minutes"):
        made_search(read, 4, 60)


def test_a_model_without_dynamic_scaling_has_a_search_of_static_ones() -> None:
    made = Made()

    def read(candidate: Candidate, number: int, limit: float) -> Measurement:
        if isinstance(candidate.scaling, DynamicScaling):
            raise RopeScalingError("no")
        return made(candidate, number, limit)

    found = made_search(read, 4, 1000)
    assert [each.name for each in found.finalists[:2]] == ["none", "yarn:1.5"]
    assert found.refused["dynamic-yarn"] == "no"
    assert min(map(made_up, found.finalists)) < made_up(found.finalists[1])
    assert found.seconds > 800


def test_a_refused_reference_is_an_error() -> None:
    def read(candidate: Candidate, number: int, limit: float) -> Measurement:
        raise RopeScalingError("cannot")

    with pytest.raises(RopeScalingError, match="cannot"):
        made_search(read, 1, 100)
