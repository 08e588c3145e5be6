"""One process at a time saves to the sessions of a folder, and removes what killed processes left there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yarn_gguf.disk.replace import is_writable_folder
from yarn_gguf.errors import SessionError


def check_writable(path: Path) -> None:
    """Raise SessionError if a session could not be saved to `path`. Call it before hours of reading."""
    if not is_writable_folder(path.parent):
        raise SessionError(f"{path}: {path.parent} is no folder that can be written to: name another")
    if path.exists() and not os.access(path, os.W_OK):
        raise SessionError(f"{path} cannot be written to: check its rights, or go on with a copy of it")


@contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock. Yields False where the system, or the file system, has no locks."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            is_locked = True
        except OSError:  # a file system without locks
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove the temporary files of killed processes for the session `name`. Call it under the lock."""
    _remove(folder, re.sub(r"([*?[])", r"[\1]", name))


def remove_all_leftovers(folder: Path, suffix: str) -> None:
    """Remove the temporary files of killed processes for all sessions. Call it under the lock."""
    _remove(folder, f"*{suffix}")


def _remove(folder: Path, pattern: str) -> None:
    for leftover in folder.glob(f".{pattern}.*.tmp"):
        leftover.unlink(missing_ok=True)
