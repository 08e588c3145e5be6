"""One request at a time, on what several threads use; and a way to cancel it."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from yarn_gguf.errors import Cancelled, YarnGGUFError

CLOSED = "this Llama was closed: make a new one"


class Request:
    """What a Llama was asked to do, from its first step to its last."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self.is_prompt_next = False
        self.has_read = False  # of the prompt, or of what there is instead, all
        self.answer = 0  # tokens that may follow the prompt; 0 where nobody said


class Turns:
    """Who wants to work takes a turn, and waits for those of other threads.

    A request may take several turns, as a stream does, one a token. Another that begins in between ends it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_taken = False
        self._is_over = False
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
    def aside(self) -> Iterator[None]:
        """Time in between the turns of others, for what changes nothing that they need."""
        with self._lock:
            self._check_open()
            yield

    @contextmanager
    def last(self) -> Iterator[None]:
        """The turn after which there is none. Raises YarnGGUFError within another, which is cancelled."""
        self.cancel()
        self._is_over = True  # those that wait for a turn get none
        with self._lock:
            if self._is_taken:
                self._is_over = False
                raise YarnGGUFError(
                    "close() from within a request, which was cancelled: close when it is done"
                )
            yield

    def _check_open(self) -> None:
        if self._is_over:
            raise YarnGGUFError(CLOSED)

    def through(self, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """`steps`, each of which is a turn of one request. Between them others may have theirs."""
        request, sent = None, None
        while True:
            with self.take(request) as request:
                try:
                    item = steps.send(sent)
                except StopIteration as end:
                    return end.value
            sent = yield item
