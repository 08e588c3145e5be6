"""What tells one file, or one text, from another."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

_BEGINNING = 1 << 24  # bytes: a header, the longest vocabularies' too
_SAMPLES, _SAMPLE = 16, 1 << 18  # of the rest, bytes


def fingerprint(path: str | Path) -> str:
    """A digest, in hexadecimal, of a file's size, its first 16 MB, and samples spread over the rest.

    Quick, whatever the size. Two files that differ in a few weights alone may agree. Raises OSError.
    """
    path = Path(path)
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_BEGINNING))
        for i in range(_SAMPLES):
            file.seek(_BEGINNING + max(0, size - _BEGINNING - _SAMPLE) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def statuses(path: str | Path) -> list[tuple[int, int, int]]:
    """Of those of the files that are there: what one that was written to, or replaced, has another of."""
    return [_status(each) for each in _parts(path) if each.exists()]


def fingerprints(path: str | Path) -> list[str]:
    """Of all files of a split model, of which `path` is one; else of the only one. Raises OSError."""
    return [fingerprint(each) for each in _parts(path)]


def digests(path: str | Path) -> list[str]:
    """As fingerprints, of every byte. Those of a file that has not changed are remembered. Raises OSError."""
    return [digest(each) for each in _parts(path)]


def digest(path: str | Path) -> str:
    """Of every byte, in hexadecimal. That of a file that has not changed is remembered. Raises OSError."""
    return _digest(Path(path).resolve(), *_status(path))


def token_digest(tokens: Sequence[int] | np.ndarray) -> str:
    """Of a text's tokens, in hexadecimal."""
    return hashlib.sha256(np.asarray(tokens, "<i4").tobytes()).hexdigest()


def text_digest(*texts: str) -> str:
    """Return the SHA-256 of one text, or of several joined by line ends, in hexadecimal."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


# ----------------------------------------------------------------------------------------------


def _status(path: str | Path) -> tuple[int, int, int]:
    found = Path(path).stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _parts(path: str | Path) -> list[Path]:
    """The files of a split model, of which `path` is one; else the only one."""
    path = Path(path)
    split = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name)
    if split is None:
        return [path]
    name, count = split.groups()
    return [path.with_name(f"{name}-{i + 1:05}-of-{count}.gguf") for i in range(int(count))]


@lru_cache
def _digest(path: Path, *_: int) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_BEGINNING):
            found.update(data)
    return found.hexdigest()
