"""Choose tensor types, quantize weights, and check that a file can be loaded, all by the library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from yarn_gguf.errors import ModelLoadError
from yarn_gguf.native.library import ggml_base, library, load
from yarn_gguf.native.log import captured_errors, reason

_F32 = 0  # enum ggml_type in ggml.h


def tensor_types(header: bytes, count: int, file_type: int, has_imatrix: bool) -> list[int]:
    """Return the ggml types that llama_model_quantize gives the `count` tensors of a GGUF header, in order.

    header: a file up to its tensor data, with the types before quantizing.
    file_type: llama_ftype.

    Raises ModelLoadError if the library does not know such a model.
    """
    load()
    types = (ctypes.c_int * count)()
    with captured_errors() as lines:
        done = library().yarn_gguf_tensor_types(header, len(header), file_type, has_imatrix, types)
    if not done:
        raise ModelLoadError(reason(lines))
    return list(types)


def row_size(type_: int, elements: int) -> int:
    """Return the bytes of a row of `elements` in the ggml type `type_`."""
    return ggml_base().ggml_row_size(type_, elements)


def quantize(matrix: np.ndarray, type_: int, importance: np.ndarray | None = None) -> np.ndarray | None:
    """Return the float32 (rows, elements) quantized by ggml on this thread, as uint8 (rows, row_size).

    importance: (elements,) float32. Returns None if the matrix or the result contains NaN or infinity.
    """
    rows, elements = matrix.shape
    matrix = np.ascontiguousarray(matrix, np.float32)
    result = np.empty((rows, row_size(type_, elements)), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    if not ggml_base().ggml_validate_row_data(_F32, matrix.ctypes.data, matrix.nbytes):
        return None
    library().yarn_gguf_quantize(type_, matrix.ctypes.data, result.ctypes.data, rows, elements, weights)
    is_sound = ggml_base().ggml_validate_row_data(type_, result.ctypes.data, result.nbytes)
    return result if is_sound else None


def check_loadable(paths: Sequence[Path]) -> None:
    """Let the library check a model's file, or all its parts in order, without reading a weight.

    It requires every tensor of the architecture, in its shape, and no other. Raises ModelLoadError with
    its reason.
    """
    llama_cpp = load()
    params = llama_cpp.llama_model_default_params()
    params.no_alloc, params.load_mode = True, llama_cpp.LLAMA_LOAD_MODE_NONE
    names = (ctypes.c_char_p * len(paths))(*(str(path).encode() for path in paths))
    with captured_errors() as lines:
        model = llama_cpp.llama_model_load_from_splits(names, len(paths), params)
    if not model:
        raise ModelLoadError(reason(lines))
    llama_cpp.llama_model_free(model)
