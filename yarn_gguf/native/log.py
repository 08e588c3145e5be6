"""Print the library's log as the bindings do, or capture it as the reason of an exception."""

from __future__ import annotations

import ctypes
import importlib
import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from yarn_gguf.errors import ModelLoadError, RopeScalingError, YarnGGUFError
from yarn_gguf.native.signals import deferred_exceptions

_LEVEL_ERROR, _LEVEL_CONTINUE = 4, 5  # enum ggml_log_level in ggml.h
_PREFIX = re.compile(r"^\w+: (error loading model: )?(error loading model hyperparameters: )?")
_captured = threading.local()


@contextmanager
def captured_errors() -> Iterator[list[str]]:
    """Collect the errors that the library logs on this thread, instead of printing them.

    What a signal's handler raises meanwhile is raised at the end.
    """
    outer = getattr(_captured, "lines", None)
    lines: list[str] = []
    _captured.lines = lines
    try:
        with deferred_exceptions():
            yield lines
    finally:
        _captured.lines = outer


@contextmanager
def overheard(words: str) -> Iterator[list[str]]:
    """Collect the lines with these words that the library logs on this thread, at any level."""
    outer = getattr(_captured, "overheard", None)
    lines: list[str] = []
    _captured.overheard = (words, lines)
    try:
        yield lines
    finally:
        _captured.overheard = outer


def reason(lines: list[str]) -> str:
    """Join error lines, without the names of functions and without "failed to load model"."""
    said = [_PREFIX.sub("", line) for line in lines]
    return "; ".join(line for line in said if line != "failed to load model")


@contextmanager
def native_reasons(model_path: str | Path) -> Iterator[None]:
    """Turn the bindings' bare "Failed to load model" (ValueError) into a ModelLoadError with the reason."""
    with captured_errors() as lines:
        try:
            yield
        except ValueError as error:
            raise ModelLoadError(f"{model_path}: {reason(lines) or error}") from error


@contextmanager
def native_refusals(kind: type[YarnGGUFError] = RopeScalingError) -> Iterator[None]:
    """Turn the bindings' bare RuntimeError into a `kind` with the library's reason, if it logged one."""
    with captured_errors() as lines:
        try:
            yield
        except RuntimeError as error:
            raise kind(reason(lines) or str(error)) from error


def install_callback(llama_cpp: ModuleType) -> None:
    """Replace the bindings' log callback, which mistakes the library's levels. Does so once."""
    if hasattr(install_callback, "callback"):
        return
    _leave_streams_alone()
    logger = importlib.import_module("llama_cpp._logger").logger
    logger.setLevel(logging.ERROR)  # until a Llama(verbose=True) asks for more
    last_level = _LEVEL_ERROR

    @llama_cpp.llama_log_callback
    def callback(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        nonlocal last_level
        last_level = last_level if level == _LEVEL_CONTINUE else level
        words, heard = getattr(_captured, "overheard", None) or ("", None)
        if heard is not None and words.encode() in text:
            heard.append(text.decode(errors="replace").strip())
        lines = getattr(_captured, "lines", None)
        if lines is not None and level == _LEVEL_ERROR:
            lines.append(text.decode(errors="replace").strip())
        elif last_level == _LEVEL_ERROR or logger.level < logging.ERROR:
            print(text.decode(errors="replace"), end="", flush=True, file=sys.stderr)

    install_callback.callback = callback  # type: ignore[attr-defined]  # the library keeps a pointer to it
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))


def _leave_streams_alone() -> None:
    """Let the bindings be silent by the log callback alone.

    Else `verbose=False` sends the stdout and stderr of the whole process to the null device while a model
    loads: what other threads write is lost, and two loads at once never bring the streams back.
    """
    suppressor = importlib.import_module("llama_cpp._utils").suppress_stdout_stderr
    suppressor.__enter__ = lambda self: self
    suppressor.__exit__ = lambda self, *_: None
