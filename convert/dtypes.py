"""The types of numbers in a checkpoint, by their names in safetensors files, and their values in numpy."""

from __future__ import annotations

import numpy as np

FLOATS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
    "F8_E8M0": "u1",
}
# of quantized weights: they mean something only with their scales
WHOLE_NUMBERS = {"U8": "u1", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
STORED_AS = FLOATS | WHOLE_NUMBERS


def values(data: np.ndarray, dtype: str) -> np.ndarray:
    """Return numbers as they are stored in `dtype` as float32. Whole numbers keep their type."""
    if dtype in WHOLE_NUMBERS:
        return data
    if dtype == "BF16":
        wide = data.astype(np.uint32)
        np.left_shift(wide, 16, out=wide)
        return wide.view(np.float32)
    if dtype in _TABLES:
        return _TABLES[dtype][data]
    return data.astype(np.float32, copy=False)


# ----------------------------------------------------------------------------------------------

_CODES = np.arange(256, dtype=np.uint16)


def _e4m3() -> np.ndarray:
    """Return the value of each byte: sign, 4 bits of exponent, 3 of fraction; no infinity, and one NaN."""
    exponent, fraction = (_CODES >> 3) & 15, _CODES & 7
    significand = np.where(exponent > 0, 8 + fraction, fraction).astype(np.float32)
    size = np.ldexp(significand, np.maximum(exponent, 1).astype(np.int32) - 7 - 3)
    size[(_CODES & 127) == 127] = np.nan
    return np.where(_CODES >> 7, -size, size)


def _e8m0() -> np.ndarray:
    """Return the value of each byte: a power of two, without a sign."""
    powers = np.ldexp(np.ones(255, np.float32), np.arange(255, dtype=np.int32) - 127)
    return np.append(powers, np.float32(np.nan))


_TABLES = {
    "F8_E4M3": _e4m3(),
    "F8_E5M2": (_CODES << 8).view(np.float16).astype(np.float32),  # the upper half of a float16
    "F8_E8M0": _e8m0(),
}
