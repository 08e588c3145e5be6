"""advise: the search on made-up losses whose best is known, its evidence, and real readings."""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from libraries import PROSE
from tiny_gguf import write_tiny

from yarn_gguf import DynamicScaling, Llama, RopeScaling, RopeScalingError, YarnGGUFError, extend
from yarn_gguf.cli import main
from yarn_gguf.evaluate.reading.documents import read_documents, read_pieces
from yarn_gguf.evaluate.reading.losses import token_losses
from yarn_gguf.evaluate.search import advise as advising
from yarn_gguf.evaluate.search.advise import space_of
from yarn_gguf.evaluate.search.candidates import Candidate, Space
from yarn_gguf.evaluate.search.halving import Measurement, Search, TooSlowError, search
from yarn_gguf.evaluate.statistics.evidence import Difference, choose, difference, mean_loss
from yarn_gguf.model_file.extend_options import options_of
from yarn_gguf.rope.dynamic import Scaling
from yarn_gguf.rope.names import name_of, parse_variant
from yarn_gguf.rope.read import read_model

SPACE = Space(64, 1e5, 8192, 12288)


def static_part(scaling: Scaling) -> RopeScaling:
    """Return the method and the ramp of a scaling, whether its factor is static or dynamic."""
    return scaling.scaling if isinstance(scaling, DynamicScaling) else scaling


def all_candidates(space: Space = SPACE) -> list[Candidate]:
    """The references, the first choice, and all around them, by each step."""
    some = space.references() + space.first()
    near = [each for one in some for step in (1, 0.5, 0.25) for each in space.around(one, step)]
    return list({each.name: each for each in some + near}.values())


# ---- candidates ------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [8300, 12288, 20000, 262144])
def test_every_candidate_makes_the_context_fit(context: int) -> None:
    space = Space(64, 1e5, 8192, context)
    for each in all_candidates(space):
        if each.name != "none":
            assert round(space.static_of(each.scaling).factor * 8192) >= context, each.name


def test_every_candidate_s_name_is_that_of_its_scaling() -> None:
    for each in all_candidates():
        assert parse_variant(each.name, 99.0).scaling.with_original_context(8192) == each.scaling


def test_a_name_is_short() -> None:
    assert name_of(RopeScaling()) == "none"
    assert name_of(RopeScaling("yarn", 2.0, 8192)) == "yarn:2"
    assert name_of(RopeScaling("yarn", 1.5, truncate=False, beta_slow=0.5)) == (
        "yarn:1.5,beta_slow=0.5,truncate=false"
    )
    assert name_of(DynamicScaling.of("by-parts", ramp="rotations")) == "dynamic-by-parts,ramp=rotations"


def test_the_first_choice_varies_everything_that_is_searched() -> None:
    found = SPACE.references() + SPACE.first()
    scalings = [each.scaling for each in found]
    assert {each.method for each in scalings} == {"none", "linear", "ntk", "by-parts", "yarn"}
    assert {each.method for each in scalings if isinstance(each, DynamicScaling)} == {
        *("linear", "ntk", "by-parts", "yarn")
    }
    static = [each for each in scalings if isinstance(each, RopeScaling)]
    for name, values in (
        ("factor", static),
        ("attention_factor", static),
        ("beta_fast", map(static_part, scalings)),
        ("beta_slow", map(static_part, scalings)),
        ("ramp", map(static_part, scalings)),
    ):
        assert len({getattr(each, name) for each in values}) > 1, name
    assert len({each.effect for each in found}) == len(found)


def test_what_lies_around_differs_in_one_value_and_comes_nearer_with_the_step() -> None:
    (yarn,) = (each for each in SPACE.references() if each.name == "yarn:1.5")
    names = {each.name for each in SPACE.around(yarn, 1)}
    assert names == {
        "yarn:1.5",  # a smaller factor would not suffice
        "yarn:1.5,beta_fast=16",
        "yarn:1.5,beta_fast=64",
        "yarn:1.5,beta_slow=0.5",
        "yarn:1.5,beta_slow=2",
        "yarn:1.5,attention_factor=1.0203",  # 1 + 0.05 ln 1.5
        "yarn:1.5,attention_factor=1.0608",
        "yarn:1.784",
        "dynamic-yarn",
    }
    assert "yarn:1.5,beta_fast=45.3" in {each.name for each in SPACE.around(yarn, 0.5)}


def test_scalings_that_differ_in_name_alone_are_tried_once() -> None:
    """Bounds of the index ramp are rounded to whole dimensions."""
    one = SPACE.candidate(RopeScaling("yarn", 1.5, beta_slow=1.0))
    same = SPACE.candidate(RopeScaling("yarn", 1.5, beta_slow=0.999))
    other = SPACE.candidate(RopeScaling("yarn", 1.5, beta_slow=0.5))
    assert one.effect == same.effect != other.effect
    assert one.effect != SPACE.candidate(DynamicScaling.of("yarn")).effect
    short = Space(64, 1e5, 128, 192)  # no dimension turns 16 times within 128 tokens, nor 32, nor 64
    names = [each.name for each in short.first()]
    assert "dynamic-yarn,beta_fast=16" in names and "dynamic-yarn,beta_fast=64" not in names


def test_the_command_that_is_printed_writes_the_candidate(tmp_path: Path) -> None:
    path, output = write_tiny(tmp_path / "tiny.gguf"), tmp_path / "out.gguf"
    for each in all_candidates():
        static = SPACE.static_of(each.scaling)
        policy = each.scaling.policy if isinstance(each.scaling, DynamicScaling) else None
        options = options_of(static, policy)
        assert main(["extend", str(path), "-o", str(output), "--force", *options]) == 0
        written = read_model(output)
        again = written.dynamic or written.scaling
        kind, temperature, table = SPACE.candidate(again).effect
        assert kind == each.effect[0]
        np.testing.assert_allclose([temperature, *table], [each.effect[1], *each.effect[2]], atol=2e-6)
        assert written.context_length >= (12288 if each.name != "none" else 8192)


# ---- the search, on made-up losses -----------------------------------------------------------

BEST = DynamicScaling.of("yarn", original_max_position_embeddings=8192, beta_fast=11.3, beta_slow=2.0)


def made_up(candidate: Candidate) -> float:
    """Smallest for BEST; rises with the logarithm of each value's distance from it."""
    scaling = candidate.scaling
    if scaling.method == "none":
        return 3.0
    loss = 1.0 + {"yarn": 0, "by-parts": 0.03, "ntk": 0.2, "linear": 0.1}[scaling.method]
    static, best = static_part(scaling), static_part(BEST)
    loss += 0.02 * abs(math.log2(static.beta_fast / best.beta_fast))
    loss += 0.02 * abs(math.log2(static.beta_slow / best.beta_slow))
    loss += 0.01 * (static.ramp != best.ramp)
    if isinstance(scaling, RopeScaling):
        loss += 0.05 + 0.1 * math.log(scaling.factor / 1.5) + abs(scaling.temperature() - 1.04)
    return loss


class Made:
    """Reads by a made-up loss; each document adds its own, and chance adds `noise`."""

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


def test_more_documents_undo_chance() -> None:
    """The noise of a document is four times what the steps around the best make out."""
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
def test_what_is_left_of_a_budget_is_less_than_another_candidate_takes(documents: int) -> None:
    for budget in range(30, 500, 10):
        found = made_search(Made(), documents, budget)
        assert budget - found.seconds < 10 * found.documents, budget


def test_a_large_budget_is_used_and_a_search_ends_by_itself() -> None:
    assert made_search(Made(), 64, 3000).seconds > 2900
    assert made_search(Made(), 1, 1e9).seconds < 3000


def test_the_plan_follows_the_pace() -> None:
    """From the eighth reading on, each takes three times as long, or a third of the time."""
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


def test_what_was_put_off_is_tried_when_nothing_lies_around_the_best() -> None:
    """24 readings after the references: 12 candidates, 9 for the better half to go on, and 3 for one more."""
    made = Made()
    first = SPACE.first()
    search(SPACE.references(), first, lambda one, step: [], 2, 270, made, lambda losses: losses[0])
    assert list(dict.fromkeys(name for name, _ in made.read))[3:] == [each.name for each in first[:13]]


def test_a_sudden_slowness_ends_the_search_and_not_the_comparison() -> None:
    """From the twentieth reading on, where the better half goes on, each takes ten times as long."""
    made = Made(seconds=lambda count: 10.0 if count < 20 else 100.0)
    found = made_search(made, 8, 500)
    assert 400 < found.seconds < 600
    for each in found.finalists:
        assert len(found.losses[each.name]) >= found.documents >= 1


def test_nothing_is_read_twice() -> None:
    made = Made()
    made_search(made, 4, 4000)
    assert len(made.read) == len(set(made.read))


def test_a_budget_that_does_not_allow_the_references_says_what_would() -> None:
    made = Made()
    with pytest.raises(YarnGGUFError) as caught:
        made_search(made, 4, 29)
    assert "3 references: a reading takes about 10 s here, all of them 1 min" in str(caught.value)
    assert "Give 2 minutes (120 seconds) or more" in str(caught.value)
    assert len(made.read) == 1


def test_a_reading_that_was_given_up_says_the_same() -> None:
    def read(candidate: Candidate, number: int, limit: float) -> Measurement:
        assert limit == 20
        raise TooSlowError(100)

    with pytest.raises(YarnGGUFError, match=r"about 100 s here, all of them 5 min.* 15 minutes"):
        made_search(read, 4, 60)


def test_a_model_without_dynamic_scaling_is_searched_for_static_ones() -> None:
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


# ---- the evidence ----------------------------------------------------------------------------


def test_what_counts_weighs_both_ends_alike() -> None:
    losses = np.concatenate([np.full(8192, 2.0), np.full(4095, 5.0)])
    assert mean_loss([losses], [0, 8192, 12288]) == 3.5
    assert mean_loss([losses, losses + 1], [0, 8192, 12288]) == 4


def test_a_difference_is_paired_and_its_error_that_over_documents() -> None:
    rng = np.random.default_rng(0)
    documents = [rng.normal(size=1000) * 5 for _ in range(4)]  # what they share cancels out
    shifts = [0.1, 0.2, 0.3, 0.4]
    found = difference(
        [each + shift for each, shift in zip(documents, shifts, strict=True)], documents, [0, 600, 1000]
    )
    assert found.mean == pytest.approx(0.25)
    assert found.standard_error == pytest.approx(np.std(shifts, ddof=1) / 2)


def test_the_error_of_one_document_is_that_over_blocks_within_its_parts() -> None:
    blocks = np.random.default_rng(0).normal(size=24)
    blocks[16:] += 100  # the parts differ: no error
    found = difference([np.repeat(blocks, 256)], [np.zeros(24 * 256)], [0, 16 * 256, 24 * 256])
    squares = [sum((b - a) ** 2 for a, b in itertools.pairwise(part)) for part in (blocks[:16], blocks[16:])]
    first, second = squares[0] / 2 / 15 / 16, squares[1] / 2 / 7 / 8
    assert found.standard_error == pytest.approx(math.sqrt(first + second) / 2)
    assert found.mean == pytest.approx((blocks[:16].mean() + blocks[16:].mean()) / 2)


def test_a_failure_that_grows_with_the_position_is_certain() -> None:
    """The error is as without the trend, which is that over independent blocks."""
    noise, trend = np.random.default_rng(0).normal(size=256 * 64), np.linspace(0, 3, 256 * 64)
    without, found = (
        difference([each], [np.zeros(256 * 64)], [0, 256 * 64]) for each in (noise, noise + trend)
    )
    assert without.standard_error == pytest.approx(1 / 128, rel=0.25)
    assert found.standard_error == pytest.approx(without.standard_error, rel=0.25)
    assert found.is_significant(1000)


def test_two_documents_that_agree_by_chance_do_not_count_as_certain() -> None:
    noise = [np.random.default_rng(i).normal(size=4096) for i in range(2)]
    noise = [each - each.mean() + 0.1 for each in noise]
    found = difference(noise, [np.zeros(4096)] * 2, [0, 4096])
    assert found.mean == pytest.approx(0.1)
    assert found.standard_error == pytest.approx(1 / math.sqrt(2 * 4096), rel=0.3)


def test_a_difference_must_be_the_larger_the_more_were_tried() -> None:
    many = 1e6  # degrees of freedom
    assert Difference(2.0, 1.0, many).is_significant(1)
    assert not Difference(2.0, 1.0, many).is_significant(2)
    assert not Difference(1.9, 1.0, many).is_significant(1)
    assert Difference(3.1, 1.0, many).is_significant(20)
    assert not Difference(3.1, 1.0, 10).is_significant(20)
    assert not Difference(0.0, 0.0, many).is_significant(1)
    assert not Difference(1.0, math.nan, 0).is_significant(1)


def test_the_blocks_of_all_parts_and_documents_count_together() -> None:
    """Those of Welch and Satterthwaite: between that of the worst known part and the sum."""
    documents = [np.random.default_rng(i).normal(size=12288) for i in range(3)]
    found = difference(documents, [np.zeros(12288)] * 3, [0, 8192, 12288])
    of_parts = [2 * (count - 1) ** 2 / (3 * count - 4) for count in (32, 16)]
    assert of_parts[1] < found.degrees_of_freedom < 3 * sum(of_parts)


def test_the_simplest_within_the_error_is_chosen() -> None:
    rng = np.random.default_rng(0)
    text = rng.normal(size=4096)

    def losses(shift: float) -> list[np.ndarray]:
        return [text + shift + rng.normal(size=4096) * 0.1]  # the error of a difference: 0.002

    edges = [0, 4096]
    assert choose({"a": losses(0.1), "b": losses(0), "c": losses(-0.001)}, edges, 2) == "b"
    assert choose({"a": losses(0.001), "b": losses(0), "c": losses(-0.001)}, edges, 2) == "a"
    assert choose({"a": losses(0.1), "b": losses(0), "c": losses(-0.1)}, edges, 2) == "c"


def test_no_noise_is_advised() -> None:
    """Of 40 scalings that are all alike, the best is so by chance: the default is chosen."""
    chosen = []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        alike = {str(i): [rng.normal(size=8192)] for i in range(40)}
        chosen.append(choose(alike, [0, 8192], 39))
    assert chosen.count("0") >= 46


# ---- texts -----------------------------------------------------------------------------------


def test_texts_are_cut_into_documents_in_turns(tmp_path: Path, monkeypatch) -> None:
    def tokens(model_path: object, text: str, *, chat: bool) -> list[int]:
        return [1, *map(ord, text)]

    monkeypatch.setattr("yarn_gguf.run.prompt.prompt_tokens", tokens)
    paths = [tmp_path / "long.txt", tmp_path / "short.txt"]
    paths[0].write_text("abcdefgh")
    paths[1].write_text("xyzw")
    found = read_pieces("model", paths, 4)
    assert [(each.name, each.tokens.tolist()) for each in found] == [
        ("long", [1, *map(ord, "abc")]),
        ("short", [1, *map(ord, "xyz")]),
        ("long, part 2", [1, *map(ord, "def")]),
    ]
    assert all(each.tokens.dtype == np.int32 for each in found)


def test_the_first_piece_is_the_document(smollm2_path) -> None:
    first, second, *rest = read_pieces(smollm2_path, [PROSE], 5000)
    (whole,) = read_documents(smollm2_path, [PROSE], 10000)
    assert np.array_equal(np.concatenate([first.tokens, second.tokens]), whole.tokens)
    assert [each.name for each in rest] == [f"{PROSE.stem}, part 3"]


# ---- what cannot be advised ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "arguments", "message"),
    [
        ({}, ["-c", "8192"], "trained on 8,192 tokens, and 8,192 are not beyond that"),
        ({}, ["-c", "8000"], "no scaling is needed, there is nothing to advise"),
        ({}, ["-c", "16384", "--budget", "0"], "--budget 0: give a number of minutes above 0"),
        ({}, ["-c", "16384", "--budget", "nan"], "--budget nan"),
        ({"arch": "gpt2"}, ["-c", "16384"], "gpt2 models have no rotary embedding to scale"),
        (
            {"rope__scaling__finetuned": True, "rope__scaling__type": "yarn", "rope__scaling__factor": 4.0},
            ["-c", "16384"],
            "the model was trained with the rope scaling in its file .yarn.: keep it",
        ),
        (
            {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
            ["-c", "16384"],
            "give --original-context",
        ),
        ({}, ["-c", "16384", "-o", "IN"], "output and input are the same file"),
        ({}, ["-c", "16384", "-o", "no/OUT"], "no/OUT: there is no folder no that can be written to"),
    ],
)
def test_what_cannot_be_advised_is_said_at_once(
    tmp_path: Path, capsys, monkeypatch, keys, arguments, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_tiny(tmp_path / "IN", **keys)
    assert main(["advise", str(path), "-f", str(PROSE), *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert re.search(message, err)


def test_a_text_that_is_too_short_is_refused(smollm2_path, capsys) -> None:
    assert main(["advise", str(smollm2_path), "-f", str(PROSE), "-c", "100000"]) == 1
    assert "100,000 are wanted: give a longer text, or a smaller --context" in capsys.readouterr().err


# ---- real readings ---------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch) -> Iterator[None]:
    """A second passes whenever somebody looks: a reading of one batch takes two."""
    ticks = itertools.count()
    monkeypatch.setattr(advising, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    yield


# SmolLM2 reads 8192 tokens: if it were trained on 128, as is said here, no scaling could be better than none
SHORT = ["-f", str(PROSE), "-c", "192", "--original-context", "128", "--budget", "0.4"]
YARN = RopeScaling("yarn", 1.5, 128)


def advised(path: Path, *arguments: str) -> int:
    return main(["advise", str(path), *SHORT, *arguments])


def test_advice_on_the_command_line(smollm2_q8, clock, tmp_path: Path, capsys) -> None:
    output, report = tmp_path / "out.gguf", tmp_path / "a.json"
    assert advised(smollm2_q8, "--json", str(report), "-o", str(output)) == 0
    shown, facts = capsys.readouterr().out, json.loads(report.read_text())
    assert facts["advice"] == "none"
    assert "Advice: none" in shown
    assert facts["seconds"] == 2 * facts["readings"] <= 24
    rows = {row["scaling"]: row for row in facts["rows"]}
    assert {"none", "yarn:1.5", "dynamic-yarn"} < rows.keys()
    assert len({row["documents"] for row in rows.values() if row["scaling"] in ("none", "yarn:1.5")}) == 1
    assert rows["none"]["documents"] == facts["documents"] > 1
    documents = read_pieces(smollm2_q8, [PROSE], 192)[: facts["documents"]]
    with closing(Llama(smollm2_q8, n_ctx=192, flash_attn=True, verbose=False)) as llama:
        llama.set_rope_scaling(YARN)
        losses = np.array([token_losses(llama, each.tokens.tolist()) for each in documents])
    row, (within, beyond) = rows["yarn:1.5"], (losses[:, :128].mean(), losses[:, 128:].mean())
    found = [row[name] for name in ("loss", "within", "beyond", "end")]
    expected = [(within + beyond) / 2, within, beyond, losses[:, 176:].mean()]
    assert found == pytest.approx(expected, abs=1e-5)
    cost = [row["within"] - rows["none"]["within"], row["loss"] - rows["dynamic-yarn"]["loss"]]
    assert cost == pytest.approx([row["cost"], -rows["dynamic-yarn"]["against_default"]])
    for name in ("none", "yarn:1.5", "dynamic-yarn"):
        assert re.search(rf"{name} .*{math.exp(rows[name]['loss']):.2f}", shown), name
    model = read_model(output)
    assert (model.scaling.method, model.context_length) == ("none", 128)
    command = next(line.strip() for line in shown.splitlines() if line.startswith("    yarn-gguf"))
    assert shlex.split(command) == shlex.split(facts["extend"])


def made_losses(best: float, chance: float) -> Callable[..., np.ndarray]:
    """In place of token_losses: 3 within the original context and beyond it 5, 4 (static), 3.5 (dynamic), or
    `best` (dynamic, ramp by rotations); of each scaling, normal noise of `chance`."""

    def losses(llama: Llama, tokens: list[int], progress: Callable[[int, int], None]) -> np.ndarray:
        scaling = llama.rope_scaling
        is_dynamic = isinstance(scaling, DynamicScaling)
        beyond = 5 if scaling.method == "none" else 3.5 if is_dynamic else 4
        if is_dynamic and (scaling.method, static_part(scaling).ramp) == ("yarn", "rotations"):
            beyond = best
        rng = np.random.default_rng([*tokens[:4], *repr(scaling).encode()])
        return np.where(np.arange(191) < 128, 3, beyond) + rng.normal(size=191) * chance

    return losses


@pytest.mark.parametrize(("best", "advice"), [(3.0, "dynamic-yarn,ramp=rotations"), (3.499, "dynamic-yarn")])
def test_what_is_advised_is_written_with_the_command_that_is_shown(
    smollm2_q8, clock, tmp_path: Path, monkeypatch, capsys, best: float, advice: str
) -> None:
    monkeypatch.setattr(advising, "token_losses", made_losses(best, 0.01))
    written, again, report = (tmp_path / name for name in ("out.gguf", "again.gguf", "a.json"))
    assert advised(smollm2_q8, "-o", str(written), "--json", str(report)) == 0
    shown, facts = capsys.readouterr().out, json.loads(report.read_text())
    assert facts["advice"] == advice
    assert re.search(rf"\n +{advice} \(advised\)", shown) and f"Advice: {advice}\n" in shown
    by_chance = (
        r"has the best score, but no better than by chance: dynamic-yarn is \+0\.\d\d ± 0\.\d\d% above it"
    )
    assert bool(re.search(by_chance, shown)) == (best > 3.4)
    unscaled = r"Against the unscaled model: .0\.\d\d ± 0\.\d\d% to 128 tokens; beyond, .* instead of 14\d"
    assert re.search(unscaled, shown)
    model = read_model(written)
    assert name_of(model.dynamic) == advice
    assert (model.scaling.factor, model.context_length, model.original_context) == (1.5, 192, 128)
    command = next(line for line in shown.splitlines() if line.startswith("    yarn-gguf extend"))
    arguments = [str(again) if each == str(written) else each for each in shlex.split(command)[1:]]
    assert main(arguments) == 0
    assert again.read_bytes() == written.read_bytes()
    other = next(line for line in shown.splitlines() if line.startswith("    yarn-gguf eval passkey"))
    assert main([*shlex.split(other)[1:], "--depths", "1", "--trials", "1"]) == 0
    original = "original_max_position_embeddings=128"
    assert f"{advice},{original},policy=request" in other and f"{advice},{original} " in other


def test_a_scaling_under_which_the_model_overflows_is_not_advised(
    smollm2_q8, clock, tmp_path: Path, monkeypatch, capsys
) -> None:
    """And a file that cannot be written does not cost the advice."""
    made = made_losses(3.0, 0.01)

    report = tmp_path / "a.json"

    def losses(llama: Llama, *arguments: object) -> np.ndarray:
        report.mkdir(exist_ok=True)  # meanwhile: where a file cannot come
        found = made(llama, *arguments)
        if isinstance(llama.rope_scaling, DynamicScaling):
            found[-1] = math.nan
        return found

    monkeypatch.setattr(advising, "token_losses", losses)
    assert advised(smollm2_q8, "--json", str(report)) == 1
    shown, err = capsys.readouterr()
    assert "Advice: yarn:1.5\n" in shown and "--method yarn --factor 1.5 --original" in shown
    assert "a.json" in err


@pytest.mark.parametrize(
    ("scaling", "names"),
    [
        (RopeScaling("yarn", 4.0), ["none", "yarn:1.5", "dynamic-yarn", "file"]),
        (RopeScaling("yarn", 1.25), ["none", "yarn:1.5", "dynamic-yarn"]),  # does not suffice
        (RopeScaling("yarn", 1.5), ["none", "yarn:1.5", "dynamic-yarn"]),  # is one of them
    ],
)
def test_what_the_file_asks_for_is_a_reference(tmp_path: Path, scaling, names: list[str]) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")
    extend(path, scaling)
    assert space_of(read_model(path), 12288) == SPACE
    found = advising._references(SimpleNamespace(model_path=path), SPACE)
    assert [each.name for each in found] == names
    assert min(found, key=lambda each: each.complexity).name == ("file" if "file" in names else "none")


def test_an_interrupted_search_goes_on_and_comes_to_the_same(
    smollm2_q8, clock, tmp_path: Path, monkeypatch, capsys
) -> None:
    calls, interrupted_at = [], 0

    def losses(llama: Llama, tokens: list[int], progress: Callable[[int, int], None]) -> np.ndarray:
        calls.append(tokens)
        if len(calls) == interrupted_at:
            raise KeyboardInterrupt
        progress(len(tokens), len(tokens))
        seed = [*tokens[:2], *str(llama.rope_scaling).encode()]
        return np.random.default_rng(seed).normal(loc=3, size=len(tokens) - 1)

    monkeypatch.setattr(advising, "token_losses", losses)
    whole, resumed = tmp_path / "whole.json", tmp_path / "resumed.json"
    assert advised(smollm2_q8, "--json", str(whole)) == 0
    calls.clear()
    interrupted_at = 6
    kept = ["--results", str(tmp_path / "kept"), "--json", str(resumed)]
    capsys.readouterr()
    assert advised(smollm2_q8, *kept) == 130
    said = f"interrupted: 5 measurements are kept in {tmp_path / 'kept'}: the same command goes on"
    assert said in capsys.readouterr().err
    assert not resumed.exists()
    assert advised(smollm2_q8, *kept) == 0
    one, other = (json.loads(each.read_text()) for each in (whole, resumed))
    assert len(calls) == one["readings"] + 1 > 8  # five, one interrupted, the others
    for name in ("advice", "best", "readings", "seconds", "documents"):
        assert one[name] == other[name]
    assert [row["scaling"] for row in one["rows"]] == [row["scaling"] for row in other["rows"]]
    np.testing.assert_allclose(*([row["loss"] for row in each["rows"]] for each in (one, other)), atol=1e-6)
    assert advised(smollm2_q8, *kept) == 0
    assert len(calls) == one["readings"] + 1
    assert advised(smollm2_q8, *kept, "--budget", "0.8") == 0  # a larger budget goes on from there
    assert len(calls) > one["readings"] + 5


def test_a_reading_that_cannot_end_in_time_is_given_up(smollm2_q8, monkeypatch, capsys) -> None:
    """A batch takes 50 seconds; 3 references in 2 minutes leave a reading 40."""
    ticks = itertools.count(step=50)
    monkeypatch.setattr(advising, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    text = ["-f", str(PROSE), "-c", "1536", "--original-context", "1024", "--budget", "2"]
    assert main(["advise", str(smollm2_q8), *text]) == 1
    assert "about 150 s here, all of them 8 min" in capsys.readouterr().err  # of three batches it read one


def test_the_time_of_a_reading_is_told_from_its_beginning() -> None:
    """Attention makes later tokens slower."""
    times = [(n, 0.01 * n + 1e-6 * n * n) for n in range(512, 4097, 512)]
    assert advising._time_of_all(times, 12288) == pytest.approx(122.88 + 150.99, rel=1e-3)
    assert advising._time_of_all([(512, 5.0)], 1024) == pytest.approx(10)
    assert advising._time_of_all([(512 * i, 5.0 + i) for i in range(1, 9)], 8192) >= 26  # a slow start


@pytest.mark.slow
def test_beyond_its_context_smollm2_is_advised_what_beats_plain_rope(
    smollm2_q8, clock, tmp_path: Path
) -> None:
    report, output = tmp_path / "a.json", tmp_path / "out.gguf"
    arguments = ["-f", str(PROSE), "-c", "12288", "--budget", "1.3", "--json", str(report), "-o", str(output)]
    assert main(["advise", str(smollm2_q8), *arguments]) == 0
    facts = json.loads(report.read_text())
    rows = {row["scaling"]: row for row in facts["rows"]}
    chosen = rows[facts["advice"]]
    assert chosen["beyond"] < rows["none"]["beyond"] - 0.1
    assert chosen["within"] < rows["none"]["within"] + 0.05
    assert read_model(output).usable_context == 12288
