"""Successive halving over documents: many candidates read a few, the better half goes on to more.

The search knows nothing of models: `read` measures, and says how long that took.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from yarn_gguf.errors import RopeScalingError, YarnGGUFError
from yarn_gguf.evaluate.search.candidates import Candidate
from yarn_gguf.rope.dynamic import DynamicScaling

_BEST, _FINEST = 2, 1 / 4  # candidates around which others are tried, and the smallest step
_RECENT = 4  # readings that tell the pace


@dataclass(frozen=True)
class Reading:
    """Of one document under one candidate. losses: float64, nats. seconds: that it took."""

    losses: np.ndarray
    seconds: float


class TooSlowError(Exception):
    """A reading was given up: it would have taken `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


# (candidate, number of the document, seconds beyond which TooSlowError may be raised)
Read = Callable[[Candidate, int, float], Reading]


class Search:
    """A search among candidates for the smallest loss. Made by `search`.

    losses: of each candidate, by its name, those of the documents that it has read, in their order.
    documents: that all finalists have read. finalists: the references, then the others, the best first.
    refused: what could not be read under a candidate, and why. seconds, readings: what it took.
    """

    def __init__(self, documents: int, budget: float, read: Read, loss: Callable[[np.ndarray], float]):
        self.losses: dict[str, list[np.ndarray]] = {}
        self.candidates: dict[str, Candidate] = {}
        self.refused: dict[str, str] = {}
        self.documents = 0
        self._times: list[float] = []
        self._references: list[Candidate] = []
        self._pool: list[Candidate] = []
        self._total, self._budget, self._read, self._loss = documents, budget, read, loss

    @property
    def finalists(self) -> list[Candidate]:
        return self._references + sorted(self._pool, key=self.score)

    def score(self, candidate: Candidate) -> float:
        """The mean loss on the documents that all finalists have read."""
        return float(np.mean([self._loss(each) for each in self.losses[candidate.name][: self.documents]]))

    @property
    def seconds(self) -> float:
        return sum(self._times)

    @property
    def readings(self) -> int:
        return len(self._times)

    @property
    def pace(self) -> float:
        """Seconds that a reading has taken of late."""
        return max(1e-9, float(np.mean(self._times[-_RECENT:])))

    @property
    def affordable(self) -> int:
        """Readings that fit into what is left, at this pace."""
        return math.floor((self._budget - self.seconds) / self.pace)

    # ------------------------------------------------------------------------------------------

    def read_references(self, references: Sequence[Candidate]) -> None:
        """Of the first document. Raises YarnGGUFError if the budget does not allow it."""
        limit = self._budget / len(references)
        for i, each in enumerate(references):
            try:
                self._measure(each, 0, math.inf if i else limit)
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
        """Read all documents so far under as many of `fresh` as half of what is left allows; all of it where
        the other half cannot take the best to another document. Returns how many."""
        room, tried = self.affordable // 2, 0
        if self.documents == self._total or self.affordable - room <= len(self._references):
            room = self.affordable
        for each in fresh:
            if tried == room // self.documents or self.affordable < self.documents:
                break
            try:
                for number in range(self.documents):
                    self._measure(each, number, math.inf)
            except RopeScalingError as error:
                self.refused[each.name] = str(error)
                continue
            self._pool.append(each)
            tried += 1
        return tried

    def go_on(self) -> bool:
        """Let the better half read as many documents again, or as many as are left or affordable."""
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
                self._measure(each, number, math.inf)
            self.documents = number + 1
        return True

    def around(self, neighbours: Callable[[Candidate, float], list[Candidate]]) -> list[Candidate]:
        """What lies around the best and has not been tried, by as large a step as there is such."""
        best = sorted(self.finalists, key=self.score)[:_BEST]
        step = 1.0
        while step >= _FINEST:
            if fresh := self.new(each for one in best for each in neighbours(one, step)):
                return fresh
            step /= 2
        return []

    def new(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those of which nothing is known, each effect once."""
        known = {each.effect for each in self.candidates.values()}
        found = {each.effect: each for each in candidates if each.name not in self.refused}
        return [each for effect, each in found.items() if effect not in known]

    def _measure(self, candidate: Candidate, number: int, limit: float) -> None:
        reading = self._read(candidate, number, limit)
        self._times.append(reading.seconds)
        if reading.seconds > limit:
            raise TooSlowError(reading.seconds)
        self.candidates[candidate.name] = candidate
        self.losses.setdefault(candidate.name, []).append(reading.losses)


def search(
    references: Sequence[Candidate],
    first: Sequence[Candidate],
    neighbours: Callable[[Candidate, float], list[Candidate]],
    documents: int,
    budget: float,
    read: Read,
    loss: Callable[[np.ndarray], float],
    say: Callable[[str], None] = lambda text: None,
) -> Search:
    """Candidates are first `first`, in the order given, and then neighbours(one of the best, step).

    references: read all that the best read. documents: how many there are. budget: seconds of reading, which
    may be overrun by a part of the last one. loss: of the losses of a document, what is to be small. Raises
    YarnGGUFError for a budget that does not allow the references, and what `read` raises.
    """
    found = Search(documents, budget, read, loss)
    found.read_references(references)
    fresh = found.new(first)
    say(
        f"a reading takes {found.pace:.3g} s: {found.affordable} more in what is left of "
        f"{budget / 60:g} minutes, for {len(fresh)} candidates and more around the best"
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
