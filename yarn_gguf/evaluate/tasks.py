"""Scalings compared on the questions of short tasks, by a model that is loaded once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from yarn_gguf.disk.fingerprint import text_digest
from yarn_gguf.evaluate.compare import Label, require_scalings
from yarn_gguf.evaluate.reading.loglikelihood import Scorer, encode_pair
from yarn_gguf.evaluate.requests import Question, Task
from yarn_gguf.evaluate.results import Results, model_key, scaling_key
from yarn_gguf.evaluate.statistics.accuracy import accuracy
from yarn_gguf.evaluate.statistics.estimate import Estimate
from yarn_gguf.progress import Progress
from yarn_gguf.rope.names import Variant

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama

_QUESTIONS_KEPT = 50  # questions that are kept as one measurement

Values = dict[str, dict[str, dict[str, np.ndarray]]]  # by variant, task and metric: one for each question


def compare_requests(
    llama: Llama, variants: Sequence[Variant], tasks: Sequence[Task], results: Results, label: Label
) -> Values:
    """Return acc and acc_norm under each variant: 1 for each question with a right answer, else 0.

    A measurement that `results` has is not repeated. label(name): returns the progress, in questions. The
    model keeps the last scaling. Raises RopeScalingError, YarnGGUFError, OSError.
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
                progress = label(f"{variant.name}, {task.name}")
                sums = _loglikelihoods(scorer, encoded[task.name], base, results, progress)
                values[variant.name][task.name] = _metrics(task.questions, sums)
    return values


def summary(values: Values) -> Iterator[dict[str, Any]]:
    """Yield a row for each scaling, task and metric.

    A row has the mean and its paired difference to the first scaling, with 95% confidence intervals.
    """
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
    """Return the log-likelihood of each choice of each question. Keeps a few questions at a time."""
    sums: list[list[float]] = []
    for start in range(0, len(questions), _QUESTIONS_KEPT):
        part = questions[start : start + _QUESTIONS_KEPT]
        key = {**base, "requests": text_digest(json.dumps(part))}
        scores = iter(results.get(key, partial(_score, scorer, part)))
        sums += [[next(scores) for _ in pairs] for pairs in part]
        progress(len(sums), len(questions))
    return sums


def _score(scorer: Scorer, questions: Sequence[_Pairs]) -> list[float]:
    pairs = [pair for pairs in questions for pair in pairs]
    return [round(each.loglikelihood, 6) for each in scorer.score(pairs)]


def _metrics(questions: Sequence[Question], sums: Sequence[Sequence[float]]) -> dict[str, np.ndarray]:
    """Return the metrics by their names, each as an array over the questions."""
    found = [
        accuracy([continuation for _, continuation in question.choices], loglikelihoods, question.label)
        for question, loglikelihoods in zip(questions, sums, strict=True)
    ]
    return {metric: np.array([each[metric] for each in found]) for metric in found[0]}
