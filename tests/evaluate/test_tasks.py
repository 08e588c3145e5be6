"""Accuracy on short tasks, its paired differences, and eval tasks on requests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from yarn_gguf import DynamicScaling, RopeScaling
from yarn_gguf.cli import main
from yarn_gguf.evaluate.reading.loglikelihood import Scorer
from yarn_gguf.evaluate.requests import read_tasks
from yarn_gguf.evaluate.results import Results
from yarn_gguf.evaluate.statistics.accuracy import accuracy
from yarn_gguf.evaluate.tasks import compare_requests, summary
from yarn_gguf.rope.names import Variant


def test_the_normalized_answer_is_the_likeliest_per_character() -> None:
    choices, sums = [" a", " abcd"], [-2.0, -6.0]
    assert accuracy(choices, sums, 0) == {"acc": 1.0, "acc_norm": 0.0}
    assert accuracy(choices, sums, 1) == {"acc": 0.0, "acc_norm": 1.0}


def test_differences_are_paired() -> None:
    first, other = np.array([1.0, 0, 1, 0]), np.array([1.0, 0, 1, 1])
    rows = list(summary({"a": {"t": {"acc": first}}, "b": {"t": {"acc": other}}}))
    assert rows[0]["difference"] == rows[0]["difference_high"] == 0
    assert (rows[1]["value"], rows[1]["difference"], rows[1]["questions"]) == (0.75, 0.25, 4)
    assert rows[1]["difference_high"] == pytest.approx(
        0.25 + 3.182 * 0.5 / 2, abs=1e-3
    )  # t with 3 degrees of freedom
    assert rows[1]["high"] == pytest.approx(0.75 + 3.182 * 0.25, abs=1e-3)


def test_dynamic_scaling_changes_nothing_on_short_tasks_and_an_interrupted_run_resumes(
    fast_llama, requests: Path, tmp_path: Path, monkeypatch
) -> None:
    variants = [Variant("none", RopeScaling()), Variant("dynamic", DynamicScaling.of("yarn"))]
    tasks, folder, label = (
        read_tasks(requests),
        Results(tmp_path / "kept"),
        lambda name: lambda done, total: None,
    )
    whole = compare_requests(fast_llama, variants, tasks, Results(None), label)
    for metric, values in whole["none"]["tiny"].items():
        assert np.array_equal(values, whole["dynamic"]["tiny"][metric])
    calls, scores = [], Scorer.score

    def interrupted(self, pairs, progress=None):
        calls.append(len(pairs))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scores(self, pairs, progress)

    monkeypatch.setattr(Scorer, "score", interrupted)
    monkeypatch.setattr("yarn_gguf.evaluate.tasks._QUESTIONS_KEPT", 2)
    with pytest.raises(KeyboardInterrupt):
        compare_requests(fast_llama, variants, tasks, folder, label)
    resumed = compare_requests(fast_llama, variants, tasks, folder, label)
    assert len(calls) == 5  # two measured, one interrupted, the other two
    assert {name: each["tiny"]["acc"].tolist() for name, each in resumed.items()} == {
        name: each["tiny"]["acc"].tolist() for name, each in whole.items()
    }


def test_requests_on_the_command_line(smollm2_q8, requests: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.json"
    arguments = ["eval", "tasks", str(smollm2_q8), "--requests", str(requests), "--json", str(out)]
    assert main([*arguments, "--csv", str(tmp_path / "out.csv"), "--scaling", "none", "yarn:2"]) == 0
    found = json.loads(out.read_text())
    assert found["kind"] == "tasks"
    assert [(row["scaling"], row["metric"], row["questions"]) for row in found["rows"]] == [
        (scaling, metric, 4) for scaling in ("none", "yarn:2") for metric in ("acc", "acc_norm")
    ]
    assert (tmp_path / "out.csv").read_text().count("\n") == 5
    assert "acc_norm" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments, "--limit", "0"])
    assert "must be a whole number > 0" in capsys.readouterr().err
    assert main([*arguments, "--scaling", "none", "yarn"]) == 1
    assert "--scaling yarn: 4,096 tokens need no scaling: name a factor" in capsys.readouterr().err
