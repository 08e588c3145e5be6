"""One request at a time, for several threads; and a way to cancel it.

A thread takes a turn to work, and waits for the turns of others. A request may take several turns: a stream
takes one for each token. A request that begins between two of them ends the stream.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import getmembers, isfunction
from typing import Any, TypeVar

from yarn_gguf.errors import Cancelled, YarnGGUFError

CLOSED = "this Llama was closed: make a new one"
NESTED = "a request from within another's callback: wait until that is done"

T = TypeVar("T")


class Request:
    """One call of a Llama, from its first step to its last."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self.is_generating = False
        self.is_prompt_next = False  # while generating: nothing of the prompt was read yet
        self.is_completion = False
        self.is_cut_short = False  # the completion ended where the context ends
        self.answer = 0  # tokens that may follow the prompt; 0 if unknown


class Turns:
    """The turns of one Llama."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_taken = False
        self._is_reporting = False
        self._is_over = False
        self._is_freed = False
        self._uses: dict[object, int] = {}  # uses under way, with their threads
        self.request = Request()  # the last one that began

    def cancel(self) -> None:
        """Cancel the request under way. A later request is not concerned."""
        self.request.is_cancelled = True

    def check_cancelled(self) -> None:
        """Raise Cancelled if the present request was cancelled."""
        if self.request.is_cancelled:
            raise Cancelled("cancelled: what was read is in the cache, and the next request goes on from it")

    @contextmanager
    def take(self, request: Request | None = None) -> Iterator[Request]:
        """Take a turn of `request`, or begin a new request. Within a turn this is a part of it.

        Raises Cancelled if the request was cancelled or cut off; YarnGGUFError after close, and within a
        progress callback.
        """
        with self._lock:
            if self._is_taken:
                if self._is_reporting:
                    raise YarnGGUFError(NESTED)
                if request not in (None, self.request):
                    raise Cancelled("cut off: another request on the same Llama is under way")
                yield self.request
                return
            if request is None:
                request = self.request = Request()
            elif request is not self.request and not self._is_over:
                raise Cancelled("cut off: another request began on the same Llama before this one's end")
            try:
                self._is_taken = True
                self._check_open()
                self.check_cancelled()
                yield request
            finally:
                self._is_taken = False

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Call a progress callback within a turn: it must not begin a request."""
        self._is_reporting = True
        try:
            yield
        finally:
            self._is_reporting = False

    @contextmanager
    def between(self) -> Iterator[None]:
        """Work between the turns of other threads, on things that their requests do not need."""
        with self._lock:
            if not self._is_taken:
                self._check_open()
            yield

    @contextmanager
    def using(self) -> Iterator[None]:
        """Use a handle of the library for a short time, without a turn. `last` waits for the end of it."""
        use = object()
        try:
            self._uses[use] = threading.get_ident()  # first: `last` looks for uses after it has set the mark
            if self._is_freed:
                raise YarnGGUFError(CLOSED)
            yield
        finally:
            self._uses.pop(use, None)

    @contextmanager
    def last(self) -> Iterator[None]:
        """Take the last turn there is. Within another turn: cancel that one and raise YarnGGUFError."""
        self.cancel()
        self._is_over = True  # threads that wait for a turn get none
        with self._lock:
            if self._is_taken or threading.get_ident() in [*self._uses.values()]:
                self._is_over = False
                raise YarnGGUFError(
                    "close() from within a request, which was cancelled: close when it is done"
                )
            self._is_freed = True
            while self._uses:
                time.sleep(0.001)
            yield

    def _check_open(self) -> None:
        if self._is_over:
            raise YarnGGUFError(CLOSED)

    def through(
        self, steps: Generator[T, Any, Any], request: Request | None = None
    ) -> Generator[T, Any, Any]:
        """Run `steps` as one request, each step in a turn of its own. Other threads may work in between."""
        sent = None
        while True:
            with self.take(request) as request:
                try:
                    item = steps.send(sent)
                except StopIteration as end:
                    return end.value
            sent = yield item


C = TypeVar("C", bound=type)


def guarded(cls: C) -> C:
    """Decorate a class that holds a handle of the library: the handle is not freed while a method runs.

    Its instances have `turns`. After the handle is freed its methods raise YarnGGUFError.
    """
    for name, method in getmembers(cls, isfunction):
        if not name.startswith("_") and name != "close":
            setattr(cls, name, _guarded(method))
    return cls


def _guarded(method: Callable) -> Callable:
    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.turns.using():
            return method(self, *args, **kwargs)

    return call
