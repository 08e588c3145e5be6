"""Keep what a signal's handler raises, such as KeyboardInterrupt, until the library returns.

While the library runs, Python code runs in its callbacks alone, such as that of the log. Python calls a
signal's handler as a callback begins, and ctypes drops an exception of a callback.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Handler = Callable[[int, Any], Any]

_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGBREAK")
    if hasattr(signal, name)
]
_raised: list[BaseException] | None = None  # by handlers; None outside of `deferred_exceptions`


@contextmanager
def deferred_exceptions() -> Iterator[None]:
    """Raise at the end what handlers of signals raise meanwhile. Python calls handlers in the main thread."""
    global _raised
    if _raised is not None or not _is_main_thread():
        yield
        return
    before = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}
    raised: list[BaseException] = []
    ours = {number: _keeping(handler, raised) for number, handler in before.items()}
    try:
        _raised = raised
        for number, handler in ours.items():
            signal.signal(number, handler)
        yield
    finally:
        _raised = None
        for number, handler in ours.items():
            if signal.getsignal(number) is handler:  # else a handler chose another
                signal.signal(number, before[number])
        if raised:
            raise raised[0]


def is_interrupted() -> bool:
    """Return whether an exception waits until the library returns to this thread."""
    return bool(_raised) and _is_main_thread()


@ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_float, ctypes.c_void_p)
def load_progress(done: float, user_data: int | None) -> bool:
    """Let the library go on with a load, as its progress callback, unless an exception waits."""
    return not is_interrupted()


# ----------------------------------------------------------------------------------------------


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _keeping(handler: Handler, raised: list[BaseException]) -> Handler:
    def call(number: int, frame: Any) -> None:
        if raised is not _raised:  # the library has returned
            handler(number, frame)
            return
        try:
            handler(number, frame)
        except BaseException as error:
            raised.append(error)

    return call
