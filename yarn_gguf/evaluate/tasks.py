"""Scalings compared on the questions of short tasks, by a model that is loaded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from yarn_gguf.evaluate.compare import Label, model_key, require_scalings, scaling_key
from yarn_gguf.evaluate.reading.loglikelihood import Scorer, encode_pair
from yarn_gguf.evaluate.requests import Question, Task
from yarn_gguf.evaluate.results import Results
from yarn_gguf.evaluate.statistics.accuracy import answers
from yarn_gguf.evaluate.statistics.estimate import Estimate
from yarn_gguf.progress import Progress
from yarn_gguf.rope.names import Variant

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama

_AT_ONCE = 50  # questions that are kept as one measurement

Values = dict[str, dict[str, dict[str, np.ndarray]]]


def compare_requests(
    llama: Llama, variants: Sequence[Variant], tasks: Sequence[Task], results: Results, label: Label
) -> Values:
    """Of each variant, task and metric (acc and acc_norm): 1 for each question with a right answer, or 0.

    By their names. What `results` has is not measured again. label(name): gives the progress, in questions,
    of what is called so. The model is left under the last scaling. Raises RopeScalingError, YarnGGUFError,
    OSError.
    """
    require_scalings(llama, variants)
    encoded = {task.name: [_encode(llama, each) for each in task.questions] for task in tasks}
    length = max(len(a) + len(b) for each in encoded.values() for pairs in each for a, b in pairs)
    model = {"kind": "tasks", **model_key(llama, results)}
    values: Values = {}
    for variant in variants:
        llama.set_rope_scaling(variant.scaling)
        base = {**model, **scaling_key(llama)}
        with closing(Scorer(llama, length)) as scorer:
            values[variant.name] = {}
            for task in tasks:
                sums = _loglikelihoods(
                    scorer, encoded[task.name], base, results, label(f"{variant.name}, {task.name}")
                )
                values[variant.name][task.name] = _answers(task.questions, sums)
    return values


def summary(values: Values) -> Iterator[dict[str, Any]]:
    """A row for each scaling, task and metric: the mean, and its paired difference to the first scaling."""
    first = next(iter(values.values()))
    for variant, tasks in values.items():
        for task, metrics in tasks.items():
            for metric, each in metrics.items():
                value, change = Estimate.of(each), Estimate.of(each - first[task][metric])
                row = {"scaling": variant, "task": task, "metric": metric, "questions": len(each)}
                row |= dict(zip(("value", "low", "high"), (value.mean, *value.interval), strict=True))
                names = ("difference", "difference_low", "difference_high")
                yield row | dict(zip(names, (change.mean, *change.interval), strict=True))


# ----------------------------------------------------------------------------------------------

_Pairs = list[tuple[list[int], list[int]]]


def _encode(llama: Llama, question: Question) -> _Pairs:
    return [encode_pair(llama, *choice) for choice in question.choices]


def _loglikelihoods(
    scorer: Scorer, questions: Sequence[_Pairs], base: dict[str, Any], results: Results, progress: Progress
) -> list[list[float]]:
    """Of each choice of each question; kept a few questions at a time."""
    sums: list[list[float]] = []
    for start in range(0, len(questions), _AT_ONCE):
        part = questions[start : start + _AT_ONCE]
        digest = hashlib.sha256(json.dumps(part).encode()).hexdigest()
        flat = [pair for pairs in part for pair in pairs]
        scores = iter(
            results.get(
                {**base, "requests": digest},
                lambda flat=flat: [round(each.loglikelihood, 6) for each in scorer.score(flat)],
            )
        )
        sums += [[next(scores) for _ in pairs] for pairs in part]
        progress(len(sums), len(questions))
    return sums


def _answers(questions: Sequence[Question], sums: Sequence[Sequence[float]]) -> dict[str, np.ndarray]:
    each = [
        answers([continuation for _, continuation in question.choices], these, question.label)
        for question, these in zip(questions, sums, strict=True)
    ]
    return {metric: np.array([answer[metric] for answer in each]) for metric in each[0]}
