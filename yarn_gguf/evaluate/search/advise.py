"""Which rope scaling suits a model, a context and the user's own texts?

Candidates read documents of the whole context, by successive halving within a time budget (halving.py). The
loss that counts is the mean of two: the mean loss at positions within the original context, and the mean loss
at positions beyond it. So a gain at one end cannot hide a loss at the other, however long the context is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from yarn_gguf.disk.fingerprint import token_digest
from yarn_gguf.errors import RopeScalingError, YarnGGUFError
from yarn_gguf.evaluate.compare import Label
from yarn_gguf.evaluate.reading.documents import Document
from yarn_gguf.evaluate.reading.losses import token_losses
from yarn_gguf.evaluate.results import Results, model_key, scaling_key
from yarn_gguf.evaluate.search.candidates import Candidate, Role, Space
from yarn_gguf.evaluate.search.halving import Measurement, Search, TooSlowError, search
from yarn_gguf.evaluate.statistics.evidence import Difference, choose, difference, mean_loss
from yarn_gguf.model_file.extend import original_context_of
from yarn_gguf.progress import Progress
from yarn_gguf.rope.read import RopeModel, read_model
from yarn_gguf.rope.scaling import RopeScaling

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama

_OVERFLOW_LOSS = 100.0  # nats: counted where the model's arithmetic overflows and the loss is not finite
_MIN_BEYOND = 16  # tokens beyond the original context: fewer are too few to measure
_MIN_REPORTS = 4  # of progress: fewer do not determine the growth of time with the position


@dataclass(frozen=True)
class Finding:
    """The measured losses of one candidate: means in nats.

    documents: the number that it has read. loss: the loss that counts. within, beyond: at positions within
    and beyond the original context. end: in the last quarter of `beyond`. against_default: the paired
    difference of `loss` to plain YaRN. cost: the paired difference of `within` to the unscaled model.
    """

    candidate: Candidate
    documents: int
    loss: float
    within: float
    beyond: float
    end: float
    against_default: Difference
    cost: Difference


@dataclass(frozen=True)
class Advice:
    """The advice, and its evidence.

    choice: the simplest finalist whose loss does not differ significantly from the smallest. best: the one
    with the smallest loss. lead: the paired difference of their losses. finalists: the references, then the
    others by loss; all have read the same documents. dropped: candidates that have read fewer. refused: names
    of candidates that the model cannot have, and why. documents: the number that the finalists have read.
    seconds, readings: the time and the number of all measurements.
    """

    space: Space
    choice: Finding
    best: Finding
    lead: Difference
    finalists: list[Finding]
    dropped: list[Finding]
    refused: dict[str, str]
    documents: int
    seconds: float
    readings: int


def space_of(model: RopeModel, context: int, original_context: int | None = None) -> Space:
    """Return the scalings that make `context` tokens fit. Raises RopeScalingError if none is needed."""
    own = model.scaling
    if model.is_finetuned or (own.is_trained_in and context <= model.usable_context):
        raise RopeScalingError(
            f"{model.path}: the model was trained with the rope scaling in its file ({own.method}), for "
            f"{model.usable_context:,} tokens: keep it"
        )
    original = original_context_of(model, RopeScaling(), original_context)
    if context < original + _MIN_BEYOND:
        raise RopeScalingError(
            f"{model.path}: the model was trained on {original:,} tokens, and {context:,} are not beyond "
            f"that: no scaling is needed, there is nothing to advise"
        )
    return Space(model.dim, model.rope_theta, original, context)


def advise(
    llama: Llama,
    space: Space,
    documents: Sequence[Document],
    budget: float,
    results: Results,
    label: Label = lambda name: lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> Advice:
    """Search the scalings of `space` by the losses of the documents, which have space.context tokens each.

    budget: seconds of reading; includes the time of measurements that `results` kept from an earlier run.
    label(name): returns the progress of a measurement. say: is told the progress of the search. The model
    keeps the last scaling. Raises YarnGGUFError, also for a budget that does not allow the references.
    """
    if not budget > 0:
        raise YarnGGUFError(f"a budget of {budget / 60:g} minutes: give more than 0")
    references = _references(llama, space)
    measure = _Measure(llama, documents, results, label)
    found = search(
        references,
        space.first(),
        space.around,
        len(documents),
        budget,
        measure,
        lambda losses: mean_loss([losses], _edges(space)),
        say,
    )
    return _advice(space, found)


# ----------------------------------------------------------------------------------------------


def _references(llama: Llama, space: Space) -> list[Candidate]:
    """Return the space's references, and the file's scaling if it differs from them and fits the context."""
    references = space.references()
    model = read_model(llama.model_path)
    in_file = space.candidate(model.dynamic or model.scaling, "file", Role.FILE)
    is_known = in_file.effect in {each.effect for each in references}
    return references if is_known or model.usable_context < space.context else [*references, in_file]


class _Measure:
    """Measures the losses of documents under candidates, and keeps them in `results`."""

    def __init__(self, llama: Llama, documents: Sequence[Document], results: Results, label: Label) -> None:
        self._llama, self._documents, self._results, self._label = llama, documents, results, label
        self._base = model_key(llama, results) | {"kind": "advise"}

    def __call__(self, candidate: Candidate, number: int, limit: float) -> Measurement:
        document = self._documents[number]
        self._llama.set_rope_scaling(candidate.scaling)
        key = {**self._base, **scaling_key(self._llama), "tokens": token_digest(document.tokens)}
        report = self._label(f"{candidate.name}, {document.name}")
        kept = self._results.get(key, lambda: self._read(document, limit, report))
        losses = np.nan_to_num(np.array(kept["losses"]), nan=_OVERFLOW_LOSS, posinf=_OVERFLOW_LOSS)
        return Measurement(losses, kept["seconds"])

    def _read(self, document: Document, limit: float, report: Progress) -> dict[str, Any]:
        start = time.monotonic()
        times: list[tuple[int, float]] = []

        def progress(done: int, total: int) -> None:
            report(done, total)
            times.append((done, time.monotonic() - start))
            if times[-1][1] > limit:
                raise TooSlowError(_time_of_all(times, total))

        losses = token_losses(self._llama, document.tokens.tolist(), progress)
        seconds = time.monotonic() - start
        return {"losses": [round(loss, 6) for loss in losses.tolist()], "seconds": round(seconds, 3)}


def _time_of_all(times: Sequence[tuple[int, float]], total: int) -> float:
    """Return the expected seconds for `total` tokens, from the (tokens, seconds) of the first.

    The time of n tokens is a n + b n^2, where b n^2 is that of attention.
    """
    counts, seconds = np.array(times, np.float64).T
    at_this_pace = seconds[-1] * total / counts[-1]
    if len(times) < _MIN_REPORTS:
        return float(at_this_pace)
    (a, b), *_ = np.linalg.lstsq(np.stack([counts, counts**2], axis=1), seconds, rcond=None)
    return float(max(at_this_pace, a * total + b * total**2))


def _edges(space: Space) -> list[int]:
    return [0, space.original, space.context]


def _advice(space: Space, found: Search) -> Advice:
    names = [each.name for each in sorted(found.finalists, key=lambda each: each.complexity)]
    losses = {name: found.losses[name][: found.documents] for name in names}
    edges = _edges(space)
    choice = choose(losses, edges, len(found.candidates) - 1)
    finalists = [_finding(space, found, each, found.documents) for each in found.finalists]
    best = min(finalists, key=lambda each: each.loss)
    dropped = [each for name, each in found.candidates.items() if name not in losses]
    return Advice(
        space,
        next(each for each in finalists if each.candidate.name == choice),
        best,
        difference(losses[choice], losses[best.candidate.name], edges),
        finalists,
        [_finding(space, found, each, len(found.losses[each.name])) for each in dropped],
        found.refused,
        found.documents,
        found.seconds,
        found.readings,
    )


def _finding(space: Space, found: Search, candidate: Candidate, documents: int) -> Finding:
    losses = found.losses[candidate.name][:documents]
    original, context = space.original, space.context
    edges = _edges(space)
    return Finding(
        candidate,
        documents,
        mean_loss(losses, edges),
        mean_loss(losses, [0, original]),
        mean_loss(losses, [original, context]),
        mean_loss(losses, [space.end, context]),
        difference(losses, _losses_of(found, Role.DEFAULT), edges),
        difference(losses, _losses_of(found, Role.UNSCALED), [0, original]),
    )


def _losses_of(found: Search, role: Role) -> list[np.ndarray]:
    """Return the losses of the reference with this role."""
    return next(found.losses[each.name] for each in found.finalists if each.role == role)
