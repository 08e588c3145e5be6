"""advise on the command line: what it refuses, measures, says and writes."""

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

from yarn_gguf import DynamicScaling, Llama, RopeScaling, extend
from yarn_gguf.cli import main
from yarn_gguf.evaluate.reading.documents import read_pieces
from yarn_gguf.evaluate.reading.losses import token_losses
from yarn_gguf.evaluate.search import advise as advising
from yarn_gguf.evaluate.search.advise import space_of
from yarn_gguf.evaluate.search.candidates import Space
from yarn_gguf.rope.names import name_of
from yarn_gguf.rope.read import read_model

SPACE = Space(64, 1e5, 8192, 12288)


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
            "the model was trained with the rope scaling in its file .yarn., for 32,768 tokens: keep it",
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
def test_requests_for_advice_that_make_no_sense_are_refused_at_once(
    tmp_path: Path, capsys, monkeypatch, keys, arguments, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_tiny(tmp_path / "IN", **keys)
    assert main(["advise", str(path), "-f", str(PROSE), *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert re.search(message, err)


@pytest.fixture
def clock(monkeypatch) -> Iterator[None]:
    """A clock that advances by a second at each call: reading one batch takes two seconds."""
    ticks = itertools.count()
    monkeypatch.setattr(advising, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    yield


# SmolLM2 reads 8192 tokens. These options say it was trained on 128, so no scaling can be better than none.
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
    """Return a function to replace token_losses: 3 within the original context, more beyond it.

    Beyond: 5 without scaling, 4 if static, 3.5 if dynamic, `best` if dynamic with the ramp by rotations. Each
    scaling adds normal noise of the size `chance`.
    """

    def losses(llama: Llama, tokens: list[int], progress: Callable[[int, int], None]) -> np.ndarray:
        scaling = llama.rope_scaling
        is_dynamic = isinstance(scaling, DynamicScaling)
        beyond = 5 if scaling.method == "none" else 3.5 if is_dynamic else 4
        if is_dynamic and (scaling.method, scaling.scaling.ramp) == ("yarn", "rotations"):
            beyond = best
        rng = np.random.default_rng([*tokens[:4], *repr(scaling).encode()])
        return np.where(np.arange(191) < 128, 3, beyond) + rng.normal(size=191) * chance

    return losses


@pytest.mark.parametrize(("best", "advice"), [(3.0, "dynamic-yarn,ramp=rotations"), (3.499, "dynamic-yarn")])
def test_the_advice_is_written_as_by_the_command_that_is_shown(
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
    unscaled = (
        r"the unscaled model: .0\.\d\d ± 0\.\d\d% up to 128 tokens; beyond, perplexity .* instead of 14\d"
    )
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
    """The advice is shown even if a file cannot be written."""
    made = made_losses(3.0, 0.01)

    report = tmp_path / "a.json"

    def losses(llama: Llama, *arguments: object) -> np.ndarray:
        report.mkdir(exist_ok=True)  # a folder now stands where the file must be written
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
def test_the_file_s_own_scaling_is_a_reference(tmp_path: Path, scaling, names: list[str]) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")
    extend(path, scaling)
    assert space_of(read_model(path), 12288) == SPACE
    found = advising._references(SimpleNamespace(model_path=path), SPACE)
    assert [each.name for each in found] == names
    assert min(found, key=lambda each: each.complexity).name == ("file" if "file" in names else "none")


def test_an_interrupted_search_continues_and_gives_the_same_advice(
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
    assert advised(smollm2_q8, *kept, "--budget", "0.8") == 0  # a larger budget continues from there
    assert len(calls) > one["readings"] + 5


def test_a_measurement_that_cannot_end_in_time_is_abandoned(smollm2_q8, monkeypatch, capsys) -> None:
    """A batch takes 50 seconds. 3 references in 2 minutes allow 40 seconds for one."""
    ticks = itertools.count(step=50)
    monkeypatch.setattr(advising, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    text = ["-f", str(PROSE), "-c", "1536", "--original-context", "1024", "--budget", "2"]
    assert main(["advise", str(smollm2_q8), *text]) == 1
    assert "about 150 s here, all of them 8 min" in capsys.readouterr().err  # it read one of three batches


def test_the_time_of_a_measurement_is_estimated_from_its_beginning() -> None:
    """Attention makes later tokens slower."""
    times = [(n, 0.01 * n + 1e-6 * n * n) for n in range(512, 4097, 512)]
    assert advising._time_of_all(times, 12288) == pytest.approx(122.88 + 150.99, rel=1e-3)
    assert advising._time_of_all([(512, 5.0)], 1024) == pytest.approx(10)
    assert advising._time_of_all([(512 * i, 5.0 + i) for i in range(1, 9)], 8192) >= 26  # a slow start


@pytest.mark.slow
def test_advice_for_smollm2_beats_plain_rope_beyond_its_context(smollm2_q8, clock, tmp_path: Path) -> None:
    report, output = tmp_path / "a.json", tmp_path / "out.gguf"
    arguments = ["-f", str(PROSE), "-c", "12288", "--budget", "1.3", "--json", str(report), "-o", str(output)]
    assert main(["advise", str(smollm2_q8), *arguments]) == 0
    facts = json.loads(report.read_text())
    rows = {row["scaling"]: row for row in facts["rows"]}
    chosen = rows[facts["advice"]]
    assert chosen["beyond"] < rows["none"]["beyond"] - 0.1
    assert chosen["within"] < rows["none"]["within"] + 0.05
    assert read_model(output).usable_context == 12288
