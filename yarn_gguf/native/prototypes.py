"""C types of the functions that we call: all of yarn-gguf.h, and some of llama.h and of ggml's headers."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p

METHOD_NUMBERS = {"linear": 1, "ntk": 2, "by-parts": 3, "yarn": 4, "longrope": 5}  # enum yarn_gguf_method


class DynamicState(ctypes.Structure):
    """struct yarn_gguf_dynamic_state: the factor s in force, and the rotations of cached keys so far.

    microseconds: the time of all these rotations.
    """

    factor: float
    rotations: int
    microseconds: int
    _fields_ = (("factor", c_double), ("rotations", ctypes.c_uint64), ("microseconds", c_int64))


class DynamicPolicy(ctypes.Structure):
    """struct yarn_gguf_dynamic_scaling: when and how a context's scaling follows the length of its text."""

    _fields_ = (
        ("method", c_int),
        ("n_ctx_orig", ctypes.c_uint32),
        *((name, c_float) for name in ("factor", "ntk_factor", "step", "beta_fast", "beta_slow")),
        ("by_rotations", c_bool),
        ("truncate", c_bool),
        ("short_factor", POINTER(c_double)),
        ("long_factor", POINTER(c_double)),
        ("n_factors", c_size_t),
        ("attention_factor", c_float),
    )


class PlacedBytes(ctypes.Structure):
    """struct yarn_gguf_bytes: bytes on the host and on all GPUs together."""

    host: int
    device: int
    _fields_ = (("host", c_size_t), ("device", c_size_t))


class CacheMemory(ctypes.Structure):
    """struct yarn_gguf_cache: the cache of all layers of one kind. cells: tokens or states in each layer."""

    layers: int
    cells: int
    bytes: PlacedBytes
    _fields_ = (("layers", ctypes.c_uint32), ("cells", ctypes.c_uint32), ("bytes", PlacedBytes))


class ContextMemory(ctypes.Structure):
    """struct yarn_gguf_memory: the memory of a context and of its model.

    attention, window, recurrent: caches of full attention, of sliding windows, and of recurrent states.
    compressed: the attention cache is MLA's.
    """

    weights: PlacedBytes
    compute: PlacedBytes
    attention: CacheMemory
    window: CacheMemory
    recurrent: CacheMemory
    other: PlacedBytes
    compressed: bool
    _fields_ = (
        ("weights", PlacedBytes),
        ("compute", PlacedBytes),
        ("attention", CacheMemory),
        ("window", CacheMemory),
        ("recurrent", CacheMemory),
        ("other", PlacedBytes),
        ("compressed", c_bool),
    )


# name: (type of the result, types of the arguments)
_LLAMA = {
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
    "yarn_gguf_set_rope_frequencies": (c_bool, [c_void_p, POINTER(c_double), c_size_t, c_float, c_float]),
    "yarn_gguf_set_dynamic_scaling": (c_bool, [c_void_p, POINTER(DynamicPolicy)]),
    "yarn_gguf_reserve_context": (None, [c_void_p, ctypes.c_uint32]),
    "yarn_gguf_get_dynamic_state": (DynamicState, [c_void_p]),
    "yarn_gguf_sample": (c_int32, [c_void_p, c_void_p, c_int32]),
    "yarn_gguf_tensor_types": (c_bool, [c_char_p, c_size_t, c_int, c_bool, c_void_p]),
    # type, source (float32), destination, rows, elements of a row, importance
    "yarn_gguf_quantize": (None, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_void_p]),
    "yarn_gguf_get_memory": (ContextMemory, [c_void_p]),
    "yarn_gguf_paper_device": (c_void_p, []),
}
_GGML = {
    "ggml_backend_dev_count": (c_size_t, []),
    "ggml_backend_dev_get": (c_void_p, [c_size_t]),
}
_GGML_BASE = {
    "ggml_validate_row_data": (c_bool, [c_int, c_void_p, c_size_t]),
    "ggml_row_size": (c_size_t, [c_int, c_int64]),
    "ggml_backend_dev_type": (c_int, [c_void_p]),
    "ggml_backend_dev_memory": (None, [c_void_p, POINTER(c_size_t), POINTER(c_size_t)]),
}


def declare_llama(library: ctypes.CDLL) -> ctypes.CDLL:
    """Return `library`, a patched libllama, with its C types."""
    return _declare(library, _LLAMA)


def declare_ggml(library: ctypes.CDLL) -> ctypes.CDLL:
    """Return `library`, libggml, with its C types."""
    return _declare(library, _GGML)


def declare_ggml_base(library: ctypes.CDLL) -> ctypes.CDLL:
    """Return `library`, libggml-base, with its C types."""
    return _declare(library, _GGML_BASE)


def _declare(library: ctypes.CDLL, functions: dict) -> ctypes.CDLL:
    for name, (result, arguments) in functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
