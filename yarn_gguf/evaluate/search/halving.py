"""Successive halving over documents: many candidates read a few, and the better half goes on to more.

The search knows nothing about models: it calls `measure`, which returns losses and the time that they took.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from yarn_gguf.errors import RopeScalingError, YarnGGUFError
from yarn_gguf.evaluate.search.candidates import Candidate
from yarn_gguf.rope.dynamic import DynamicScaling

_BEST = 2  # candidates whose neighbours are tried
_SMALLEST_STEP = 1 / 4
_RECENT = 4  # measurements whose mean is the pace


@dataclass(frozen=True)
class Measurement:
    """The losses of one document under one candidate (float64, nats), and the time that they took."""

    losses: np.ndarray
    seconds: float


class TooSlowError(Exception):
    """A measurement was abandoned because it would have taken `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


# (candidate, number of the document, seconds beyond which it may raise TooSlowError)
Measure = Callable[[Candidate, int, float], Measurement]


class Search:
    """A search among candidates for the smallest loss. `search` makes it.

    losses: by a candidate's name, the losses of the documents that it has read, in order. documents: the
    number that all finalists have read. refused: names of candidates that the model cannot have, and why.
    """

    def __init__(
        self, documents: int, budget: float, measure: Measure, loss: Callable[[np.ndarray], float]
    ) -> None:
        self.losses: dict[str, list[np.ndarray]] = {}
        self.candidates: dict[str, Candidate] = {}
        self.refused: dict[str, str] = {}
        self.documents = 0
        self._times: list[float] = []
        self._references: list[Candidate] = []
        self._pool: list[Candidate] = []
        self._total, self._budget, self._measure, self._loss = documents, budget, measure, loss

    @property
    def finalists(self) -> list[Candidate]:
        """The references, then the others, the best first."""
        return self._references + sorted(self._pool, key=self.score)

    def score(self, candidate: Candidate) -> float:
        """Return the mean loss on the documents that all finalists have read."""
        return float(np.mean([self._loss(each) for each in self.losses[candidate.name][: self.documents]]))

    @property
    def seconds(self) -> float:
        """The time that all measurements took."""
        return sum(self._times)

    @property
    def readings(self) -> int:
        """The number of measurements."""
        return len(self._times)

    @property
    def pace(self) -> float:
        """The seconds that the latest measurements took on average."""
        return max(1e-9, float(np.mean(self._times[-_RECENT:])))

    @property
    def affordable(self) -> int:
        """The number of measurements that fit into the rest of the budget at this pace."""
        return math.floor((self._budget - self.seconds) / self.pace)

    # ------------------------------------------------------------------------------------------

    def read_references(self, references: Sequence[Candidate]) -> None:
        """Measure the references on the first document. Raises YarnGGUFError if the budget is too small."""
        limit = self._budget / len(references)
        for i, each in enumerate(references):
            try:
                self._read(each, 0, math.inf if i else limit)
            except TooSlowError as error:
                raise _too_small(self._budget, error.seconds, len(references)) from None
            except RopeScalingError as error:
                if not isinstance(each.scaling, DynamicScaling):
                    raise
                self.refused[each.name] = str(error)
                continue
            self._references.append(each)
        self.documents = 1

    def try_out(self, fresh: Sequence[Candidate]) -> int:
        """Measure new candidates on all documents so far, with half of the remaining budget. Return how many.

        Use all of the budget if the other half does not allow the best to read another document.
        """
        room, tried = self.affordable // 2, 0
        if self.documents == self._total or self.affordable - room <= len(self._references):
            room = self.affordable
        for each in fresh:
            if tried == room // self.documents or self.affordable < self.documents:
                break
            try:
                for number in range(self.documents):
                    self._read(each, number, math.inf)
            except RopeScalingError as error:
                self.refused[each.name] = str(error)
                continue
            self._pool.append(each)
            tried += 1
        return tried

    def go_on(self) -> bool:
        """Let the better half read as many documents again, or as many as are left or affordable.

        Return whether all of them did: False, too, if the budget ends before.
        """
        room, fixed = self.affordable, len(self._references)
        keep = min(math.ceil(len(self._pool) / 2), room - fixed)
        if self.documents == self._total or keep < min(1, len(self._pool)):
            return False
        group = self._references + sorted(self._pool, key=self.score)[:keep]
        more = min(self.documents, self._total - self.documents, room // len(group))
        self._pool = group[fixed:]
        for number in range(self.documents, self.documents + more):
            for each in group:
                if self.affordable < 1:
                    return False
                self._read(each, number, math.inf)
            self.documents = number + 1
        return True

    def around(self, neighbours: Callable[[Candidate, float], list[Candidate]]) -> list[Candidate]:
        """Return untried neighbours of the best candidates, at the largest step that has any."""
        best = sorted(self.finalists, key=self.score)[:_BEST]
        step = 1.0
        while step >= _SMALLEST_STEP:
            if fresh := self.new(each for one in best for each in neighbours(one, step)):
                return fresh
            step /= 2
        return []

    def new(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return the candidates that have not been measured or refused, each effect once."""
        known = {each.effect for each in self.candidates.values()}
        found = {each.effect: each for each in candidates if each.name not in self.refused}
        return [each for effect, each in found.items() if effect not in known]

    def _read(self, candidate: Candidate, number: int, limit: float) -> None:
        """Let a candidate read the document with this number, and keep its losses."""
        measured = self._measure(candidate, number, limit)
        self._times.append(measured.seconds)
        if measured.seconds > limit:
            raise TooSlowError(measured.seconds)
        self.candidates[candidate.name] = candidate
        self.losses.setdefault(candidate.name, []).append(measured.losses)


def search(
    references: Sequence[Candidate],
    first: Sequence[Candidate],
    neighbours: Callable[[Candidate, float], list[Candidate]],
    documents: int,
    budget: float,
    measure: Measure,
    loss: Callable[[np.ndarray], float],
    say: Callable[[str], None] = lambda text: None,
) -> Search:
    """Search for the smallest loss: try `first` in the given order, then neighbours(one of the best, step).

    references: measured on all documents that the best read. documents: the number of documents. budget: in
    seconds; the last measurement may overrun it. loss: returns what to minimise, from the losses of a
    document. say: is told the progress. Raises YarnGGUFError for a budget that does not allow the references,
    and the errors of `measure`.
    """
    found = Search(documents, budget, measure, loss)
    found.read_references(references)
    fresh = found.new(first)
    say(
        f"a reading takes {found.pace:.3g} s: {found.affordable} more fit into the rest of "
        f"{budget / 60:g} minutes, for {len(fresh)} candidates and neighbours of the best"
    )
    while True:
        pool, before = len(found.finalists), found.documents
        tried = found.try_out(fresh)
        went_on = found.go_on()
        if not (tried or went_on):
            return found
        say(
            f"{tried} tried on {before} of {documents} documents"
            + (f"; {len(found.finalists)} of {pool + tried} went on to {found.documents}" if went_on else "")
        )
        fresh = found.new([*found.around(neighbours), *first])


def _too_small(budget: float, seconds: float, references: int) -> YarnGGUFError:
    least, useful = (math.ceil(round(seconds * count / 60, 3)) for count in (references, references + 6))
    return YarnGGUFError(
        f"a budget of {budget / 60:g} minutes does not allow to read one document under each of the "
        f"{references} references: a reading takes about {seconds:.3g} s here, all of them {least} min. "
        f"Give {useful} minutes ({60 * useful} seconds) or more for a search, or a smaller context"
    )
