"""What tells one model file from another, without reading all of it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_BEGINNING = 1 << 24  # bytes: a header, the longest vocabularies' too
_SAMPLES, _SAMPLE = 16, 1 << 18  # of the whole file, bytes


def fingerprint(path: str | Path) -> str:
    """A digest, in hexadecimal, of a file's size, its first 16 MB, and samples spread over all of it.

    Two files that differ in a few weights alone may agree. Raises OSError.
    """
    path = Path(path)
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_BEGINNING))
        for i in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def fingerprints(path: str | Path) -> list[str]:
    """Of all files of a split model, of which `path` is one; else of the only one. Raises OSError."""
    path = Path(path)
    split = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name)
    if split is None:
        return [fingerprint(path)]
    name, count = split.groups()
    return [fingerprint(path.with_name(f"{name}-{i + 1:05}-of-{count}.gguf")) for i in range(int(count))]
