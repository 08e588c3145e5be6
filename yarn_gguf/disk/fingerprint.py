"""Tell files, and texts, apart: quick fingerprints, digests of every byte, and the system's file status."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

_BEGINNING = 1 << 24  # bytes: longer than any header, even with the longest vocabulary
_SAMPLES, _SAMPLE = 16, 1 << 18  # number and bytes of the samples from the rest of the file


def fingerprint(path: str | Path) -> str:
    """Return a digest, in hexadecimal, of a file's size, its first 16 MB, and samples from the rest.

    It takes the same short time for every size. Two files that differ in a few weights may have the same
    fingerprint. Raises OSError.
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
    """Return (inode, size, mtime) of each existing file of the model at `path`.

    The result changes when a file is written to or replaced.
    """
    return [_status(each) for each in model_files(path) if each.exists()]


def model_files(path: str | Path) -> list[Path]:
    """Return all files of the split model to which `path` belongs; [path] if the model is not split."""
    path = Path(path)
    split = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name)
    if split is None:
        return [path]
    name, count = split.groups()
    return [path.with_name(f"{name}-{i + 1:05}-of-{count}.gguf") for i in range(int(count))]


def fingerprints(path: str | Path) -> list[str]:
    """Return the fingerprint of each file of the model at `path`. Raises OSError."""
    return [fingerprint(each) for each in model_files(path)]


def digests(path: str | Path) -> list[str]:
    """Return the digest of each file of the model at `path`. Raises OSError."""
    return [digest(each) for each in model_files(path)]


def digest(path: str | Path) -> str:
    """Return the SHA-256 of every byte of a file, in hexadecimal.

    The result is cached for as long as the file's status stays the same. Raises OSError.
    """
    return _digest(Path(path).resolve(), *_status(path))


def token_digest(tokens: npt.ArrayLike) -> str:
    """Return the SHA-256 of a sequence of tokens, as little-endian int32, in hexadecimal."""
    return hashlib.sha256(np.asarray(tokens, "<i4").tobytes()).hexdigest()


def text_digest(*texts: str) -> str:
    """Return the SHA-256 of one text, or of several joined by line ends, in hexadecimal."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


# ----------------------------------------------------------------------------------------------


def _status(path: str | Path) -> tuple[int, int, int]:
    found = Path(path).stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache
def _digest(path: Path, *_: int) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_BEGINNING):
            found.update(data)
    return found.hexdigest()
