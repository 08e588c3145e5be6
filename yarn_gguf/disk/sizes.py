"""Read sizes in powers of 1024 or of 1000, and print sizes of memory. A GPU of "24 GB" has 24 GiB."""

from __future__ import annotations

import math
import re

from yarn_gguf.errors import YarnGGUFError

_KIB, _MIB, _GIB = 2**10, 2**20, 2**30
_UNITS = ("", "K", "M", "G", "T")  # powers of 1024, or of 1000
_BINARY_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(?:iB|B)?", re.IGNORECASE)
_DECIMAL_SIZE = re.compile(r"(\d+)([KMGT]?)B?", re.IGNORECASE)
_FIRST_IN_GIB = 1000 * _MIB  # bytes; from here on size_text writes GiB


def parse_binary_size(text: str) -> int:
    """Return the bytes of a text such as "24G" or "1.5 TiB", in powers of 1024. Raises YarnGGUFError."""
    found = _BINARY_SIZE.fullmatch(text.strip())
    if found is None:
        raise YarnGGUFError(f"a size must be a number with its unit, such as 24G, 512M or 1.5T, got {text!r}")
    return round(float(found[1]) * 1024 ** _UNITS.index(found[2].upper()))


def parse_decimal_size(text: str) -> int:
    """Return the bytes of a text such as "2G", "500M" or "1000", in powers of 1000. Raises YarnGGUFError."""
    found = _DECIMAL_SIZE.fullmatch(text)
    if found is None:
        raise YarnGGUFError(f"must be a number of bytes like 2G or 500M, got {text}")
    return int(found[1]) * 1000 ** _UNITS.index(found[2].upper())


def size_text(size: int) -> str:
    """Return `size` bytes as text, such as "24.0 GiB", "159 MiB" or "16 KiB"."""
    if size >= _FIRST_IN_GIB:
        return f"{size / _GIB:.1f} GiB"
    return f"{size / _MIB:.0f} MiB" if size >= _MIB else f"{size / _KIB:.0f} KiB"


def lack_text(size: int) -> str:
    """Return size_text, rounded up: the text never names less than `size` bytes."""
    step = _GIB / 10 if size >= _FIRST_IN_GIB else _MIB if size >= _MIB else _KIB
    return size_text(math.ceil(math.ceil(size / step) * step))
