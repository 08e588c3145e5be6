"""One request at a time, on what several threads use; and a way to cancel it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import getmembers, isfunction
from typing import Any

from yarn_gguf.errors import Cancelled, YarnGGUFError

CLOSED = "this Llama was closed: make a new one"
NESTED = "a request from within another's callback: wait until that is done"


class Request:
    """What a Llama was asked to do, from its first step to its last."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self.is_generating = False
        self.is_prompt_next = False  # while generating: of the prompt nothing was read yet
        self.is_completion = False
        self.is_cut_short = False  # the completion, by the context's end
        self.certain = sys.maxsize  # tokens in the cache; what comes after them a draft model proposed
        self.answer = 0  # tokens that may follow the prompt; 0 where nobody said


class Turns:
    """Who wants to work takes a turn, and waits for those of other threads.

    A request may take several turns, as a stream does, one a token. Another that begins in between ends it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_taken = False
        self._is_reporting = False
        self._is_over = False
        self._is_freed = False
        self._uses: dict[object, int] = {}  # that are under way, with their threads
        self.request = Request()  # the last that began

    def cancel(self) -> None:
        """The request that is under way goes no further; one that begins later is not concerned."""
        self.request.is_cancelled = True

    def check(self) -> None:
        """Raises Cancelled if the present request was cancelled."""
        if self.request.is_cancelled:
            raise Cancelled("cancelled: what was read is in the cache, and the next request goes on from it")

    @contextmanager
    def take(self, request: Request | None = None) -> Iterator[Request]:
        """A turn of `request`, or of a new one; within a turn, a part of it. Raises Cancelled."""
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
                self.check()
                yield request
            finally:
                self._is_taken = False

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Within a turn, while its caller is told how far it is: no request may come from there."""
        self._is_reporting = True
        try:
            yield
        finally:
            self._is_reporting = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time in between the turns of others, for what changes nothing that they need."""
        with self._lock:
            if not self._is_taken:
                self._check_open()
            yield

    @contextmanager
    def using(self) -> Iterator[None]:
        """A use of what `last` frees, at any time, without a turn: `last` waits for it. To be short."""
        use = object()
        try:
            self._uses[use] = threading.get_ident()  # before looking, as `last` looks after freeing
            if self._is_freed:
                raise YarnGGUFError(CLOSED)
            yield
        finally:
            self._uses.pop(use, None)

    @contextmanager
    def last(self) -> Iterator[None]:
        """The turn after which there is none. Raises YarnGGUFError within another, which is cancelled."""
        self.cancel()
        self._is_over = True  # those that wait for a turn get none
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
        self, steps: Generator[Any, Any, Any], request: Request | None = None
    ) -> Generator[Any, Any, Any]:
        """`steps`, each a turn of `request`, or of one new request. Between them others may have theirs."""
        sent = None
        while True:
            with self.take(request) as request:
                try:
                    item = steps.send(sent)
                except StopIteration as end:
                    return end.value
            sent = yield item


def guarded(cls: type) -> type:
    """Of a subclass of one that holds a handle of the library: its methods use what `self.turns` frees.

    It is not freed before they end, and once it is, they raise YarnGGUFError.
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
