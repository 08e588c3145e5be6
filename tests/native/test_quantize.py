"""Our quantizers, which take eight groups at a time, give the same bytes as ggml's for any weights."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from yarn_gguf.convert.quantize import GGMLType
from yarn_gguf.native.library import library, library_folder
from yarn_gguf.native.weights import row_size

RNG = np.random.default_rng(0)
ROWS, COLUMNS = 64, 768  # rows of three blocks


def weights(kind: str) -> np.ndarray:
    """Return float32 weights, (ROWS, COLUMNS)."""
    normal = RNG.standard_normal((ROWS, COLUMNS), np.float32)
    groups = normal.reshape(-1, 16)
    if kind == "one value a group":
        groups[:] = groups[:, :1]
    elif kind == "zeros among others":
        groups[RNG.random(len(groups)) < 0.4] = 0
        normal[RNG.random(normal.shape) < 0.3] = 0
    elif kind == "one weight alone":
        groups[:, 1:] = 0
    elif kind == "around a block of nothing":  # upstream takes such weights for zero
        normal.reshape(-1, 256)[::2] *= np.float32(1e-17)
    return normal


SCALES = {"small": 2e-2, "tiny": 1e-14, "denormal": 1e-40, "large": 1e4, "beyond float16": 1e18}
KINDS = ("one value a group", "zeros among others", "one weight alone", "around a block of nothing")
CASES = {
    **{name: lambda scale=scale: weights("") * np.float32(scale) for name, scale in SCALES.items()},
    **{name: lambda name=name: weights(name) for name in KINDS},
    "positive": lambda: np.abs(weights("")),
    "negative": lambda: -np.abs(weights("")),
    "steps": lambda: np.round(weights("") * 4) / 4,
    "outliers": lambda: RNG.standard_cauchy((ROWS, COLUMNS)).astype(np.float32),
    "as bf16": lambda: (weights("").view(np.uint32) & 0xFFFF0000).view(np.float32),
}


def by_ggml(matrix: np.ndarray, type_: int) -> np.ndarray:
    ggml = ctypes.CDLL(str(library_folder() / "libggml-base.so"))
    function = ggml.ggml_quantize_chunk
    function.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    result = np.empty((len(matrix), row_size(type_, matrix.shape[1])), np.uint8)
    function(type_, matrix.ctypes.data, result.ctypes.data, 0, *matrix.shape, None)
    return result


def by_us(matrix: np.ndarray, type_: int) -> np.ndarray:
    """Quantize without the check of the result, which refuses scales beyond float16."""
    result = np.empty((len(matrix), row_size(type_, matrix.shape[1])), np.uint8)
    library().yarn_gguf_quantize(type_, matrix.ctypes.data, result.ctypes.data, *matrix.shape, None)
    return result


@pytest.mark.parametrize("type_", [GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K, GGMLType.Q3_K, GGMLType.Q8_0])
@pytest.mark.parametrize("case", CASES)
def test_the_bytes_are_those_of_ggml(case: str, type_: GGMLType) -> None:
    matrix = np.ascontiguousarray(CASES[case](), np.float32)
    assert np.isfinite(matrix).all()
    np.testing.assert_array_equal(by_us(matrix, type_), by_ggml(matrix, type_))
