"""Find, check and load the patched llama.cpp; the only module that knows of shared libraries.

The bindings are llama-cpp-python's. They load whatever library the folder in the environment variable
LLAMA_CPP_LIB_PATH holds, once, when `llama_cpp` is first imported: so :func:`load` must come before.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import yarn_gguf
from yarn_gguf.dynamic import METHODS, DynamicScaling
from yarn_gguf.errors import ModelLoadError, NativeLibraryError, RopeScalingError, YarnGGUFError

FOLDER_VARIABLE = "LLAMA_CPP_LIB_PATH"
REINSTALL = "reinstall yarn-gguf (pip install --force-reinstall yarn-gguf, or make setup in a source tree)"

_F32 = 0  # enum ggml_type in ggml.h
_DEVICE_CPU, _DEVICE_GPUS = 0, (1, 2)  # enum ggml_backend_dev_type in ggml-backend.h
_LOG_LEVEL_ERROR, _LOG_LEVEL_CONTINUE = 4, 5  # enum ggml_log_level in ggml.h
_LIBRARY_NAMES = {"win32": ("{}.dll", "lib{}.dll"), "darwin": ("lib{}.dylib", "lib{}.so")}
_LOG_PREFIX = re.compile(r"^\w+: (error loading model: )?(error loading model hyperparameters: )?")
_GRAMMAR_TEXT = re.compile(r'"(?:\\.|[^"\\])*"?|\[(?:\\.|[^\]\\])*\]?|#.*')  # where a bracket is none
_MOST_BRACKETS = 1000  # within one another: each takes up to 500 bytes of the stack while it is parsed
_MOST_RULES = 10_000  # a chain of them takes about 100 bytes of the stack for each
_SHORT = 4000  # bytes
_STACK_SIZE = threading.Lock()  # of threads that are about to begin
_captured = threading.local()


def library_folder() -> Path:
    """The folder of the native library: LLAMA_CPP_LIB_PATH if set, else the one in this package."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    folders = [Path(root) / "lib" for root in yarn_gguf.__path__]  # an editable install has two roots
    return next((folder for folder in folders if _library_in(folder)), folders[0])


def load() -> ModuleType:
    """The module `llama_cpp`, bound to our library. Raises NativeLibraryError, with the remedy."""
    folder = library_folder().resolve()
    _refuse_foreign_bindings(folder)
    if "llama_cpp" not in sys.modules:
        check_library(folder)
        os.environ[FOLDER_VARIABLE] = str(folder)
    try:
        llama_cpp = importlib.import_module("llama_cpp")
    except ImportError as error:
        raise NativeLibraryError(f"llama-cpp-python cannot be imported ({error}): {REINSTALL}") from error
    _install_log_callback(llama_cpp)
    return llama_cpp


def check_library(folder: Path) -> None:
    """Refuse a folder whose library is missing, unpatched, of another yarn-gguf or other bindings."""
    path = _library_in(folder)
    if path is None:
        raise NativeLibraryError(f"no llama.cpp library in {folder}: {REINSTALL}{_variable_hint()}")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeLibraryError(
            f"{path} cannot be loaded ({error}): {REINSTALL}{_variable_hint()}"
        ) from error
    found = _exported_text(library, "yarn_gguf_patch_version")
    if found is None:
        raise NativeLibraryError(
            f"{path} is a llama.cpp without yarn-gguf's patches: {REINSTALL}{_variable_hint()}"
        )
    if found != yarn_gguf.__version__:
        both = f"belongs to yarn-gguf {found}, this is {yarn_gguf.__version__}"
        raise NativeLibraryError(f"{path} {both}: {REINSTALL}{_variable_hint()}")
    _check_bindings(path, _exported_text(library, "yarn_gguf_bindings_version"))


@contextmanager
def native_reasons(model_path: str | Path) -> Iterator[None]:
    """Turns the bindings' bare "Failed to load model" (ValueError) into a ModelLoadError that says why."""
    with _captured_errors() as lines:
        try:
            yield
        except ValueError as error:
            raise ModelLoadError(f"{model_path}: {_reason(lines) or error}") from error


def set_rope_frequencies(context: int, inv_freq: np.ndarray, factor: float, attention_factor: float) -> None:
    """Give a context with an empty cache these frequencies, in the place of any scaling in force.

    inv_freq: (rotary dimensions // 2,), radians per position. Raises RopeScalingError if the library refuses.
    """
    table = np.ascontiguousarray(inv_freq, dtype=np.float64)
    function = _library().yarn_gguf_set_rope_frequencies
    pointer = ctypes.POINTER(ctypes.c_double)
    function.argtypes = [ctypes.c_void_p, pointer, ctypes.c_size_t, ctypes.c_float, ctypes.c_float]
    function.restype = ctypes.c_bool
    with _captured_errors() as lines:
        done = function(context, table.ctypes.data_as(pointer), len(table), factor, attention_factor)
    if not done:
        raise RopeScalingError(_reason(lines))


@contextmanager
def native_refusals(kind: type[YarnGGUFError] = RopeScalingError) -> Iterator[None]:
    """Turns the bindings' bare RuntimeError into a `kind` that says why, if the library did."""
    with _captured_errors() as lines:
        try:
            yield
        except RuntimeError as error:
            raise kind(_reason(lines) or str(error)) from error


class DynamicState(ctypes.Structure):
    """Of dynamic scaling: s in force; how often cached keys were rotated, and what that took in all."""

    _fields_ = (("factor", ctypes.c_double), ("rotations", ctypes.c_uint64), ("microseconds", ctypes.c_int64))


class _DynamicPolicy(ctypes.Structure):
    """struct yarn_gguf_dynamic_scaling"""

    _fields_ = (
        ("method", ctypes.c_int),
        ("n_ctx_orig", ctypes.c_uint32),
        *((name, ctypes.c_float) for name in ("factor", "ntk_factor", "step", "beta_fast", "beta_slow")),
        ("by_rotations", ctypes.c_bool),
        ("truncate", ctypes.c_bool),
    )


def set_dynamic_scaling(context: int, dynamic: DynamicScaling) -> None:
    """Let the scaling of a context with an empty cache follow the length of its text.

    The original context must be known. Raises RopeScalingError if the library refuses.
    """
    policy = _DynamicPolicy(
        method=("none", *METHODS).index(dynamic.method),
        n_ctx_orig=dynamic.original_max_position_embeddings,
        factor=dynamic.factor,
        ntk_factor=dynamic.ntk_factor,
        step=1.0 if dynamic.policy == "exact" else dynamic.step,
        beta_fast=dynamic.beta_fast,
        beta_slow=dynamic.beta_slow,
        by_rotations=dynamic.ramp == "rotations",
        truncate=dynamic.truncate,
    )
    function = _library().yarn_gguf_set_dynamic_scaling
    function.argtypes = [ctypes.c_void_p, ctypes.POINTER(_DynamicPolicy)]
    function.restype = ctypes.c_bool
    with _captured_errors() as lines:
        done = function(context, policy)
    if not done:
        raise RopeScalingError(_reason(lines))


def reserve_context(context: int, tokens: int) -> None:
    """Let dynamic scaling suffice for `tokens` from now on; 0 for no such wish."""
    function = _library().yarn_gguf_reserve_context
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_uint32], None
    function(context, tokens)


def dynamic_state(context: int) -> DynamicState:
    """The state of dynamic scaling; factor 1 and nothing else for a context without."""
    function = _library().yarn_gguf_get_dynamic_state
    function.argtypes, function.restype = [ctypes.c_void_p], DynamicState
    return function(context)


def sample(sampler: int, context: int, index: int) -> int:
    """The token that the chain `sampler` takes by the logits at `index`. Raises YarnGGUFError for none."""
    function = _library().yarn_gguf_sample
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]
    function.restype = ctypes.c_int32
    with _captured_errors() as lines:
        token = function(sampler, context, index)
    if token < 0:
        raise YarnGGUFError(f"no token can be sampled: {_reason(lines)}")
    return token


def check_grammar(vocabulary: int, grammar: str, root: str) -> None:
    """Raises YarnGGUFError with the library's reason if it cannot parse `grammar`, in GBNF."""
    llama_cpp = load()
    _check_depth(_GRAMMAR_TEXT.sub("", grammar))
    with _captured_errors() as lines:
        sampler = llama_cpp.llama_sampler_init_grammar(vocabulary, grammar.encode(), root.encode())
    if not sampler:
        raise YarnGGUFError(f"the grammar cannot be used: {_reason(lines) or grammar!r}")
    llama_cpp.llama_sampler_free(sampler)


def _check_depth(grammar: str) -> None:
    """Of a grammar without its texts: the library parses it and goes through it by recursion."""
    steps = (1 if bracket == "(" else -1 for bracket in re.findall("[()]", grammar))
    if max(itertools.accumulate(steps), default=0) > _MOST_BRACKETS:
        raise YarnGGUFError(
            f"the grammar cannot be used: more than {_MOST_BRACKETS:,} brackets within one another, as a "
            "JSON schema has by a large maxLength or maxItems: leave that out"
        )
    if grammar.count("::=") > _MOST_RULES:
        raise YarnGGUFError(f"the grammar cannot be used: more than {_MOST_RULES:,} rules")


def tokenize(vocabulary: int, text: bytes, add_bos: bool, special: bool) -> list[int]:
    """The tokens of `text`, with as much stack as that may take. Raises YarnGGUFError.

    Many a vocabulary's pre-tokenizer is a std::regex, which takes 320 bytes of the stack for each character
    that it matches: 27,000 spaces, or letters without one, would end the process.
    """
    longest = 0
    if len(text) > _SHORT:
        longest = max(len(run) for runs in (text.split(), re.split(rb"\S+", text)) for run in runs)
    if longest <= _SHORT:
        return _tokenize(vocabulary, text, add_bos, special)
    with ThreadPoolExecutor(1) as executor, _STACK_SIZE:
        before = threading.stack_size((512 + longest // 16) << 14)  # 8 MB, and 1 KB for each byte
        try:
            future = executor.submit(_tokenize, vocabulary, text, add_bos, special)
        except RuntimeError as error:
            raise YarnGGUFError(
                f"no room to tokenize {longest:,} bytes without a blank, or all blank: break the text up"
            ) from error
        finally:
            threading.stack_size(before)
    return future.result()


def _tokenize(vocabulary: int, text: bytes, add_bos: bool, special: bool) -> list[int]:
    room = len(text) + 16  # special tokens among them
    with _captured_errors() as lines:
        while True:
            tokens = (ctypes.c_int32 * room)()
            count = _library().llama_tokenize(vocabulary, text, len(text), tokens, room, add_bos, special)
            if count >= 0:
                return tokens[:count]
            if count == -(2**31):  # an error
                raise YarnGGUFError(f"the model's vocabulary has no tokens for this text: {_reason(lines)}")
            room = -count  # normalized, the text is longer


def tensor_types(header: bytes, count: int, file_type: int, has_imatrix: bool) -> list[int]:
    """The ggml types that llama_model_quantize gives the `count` tensors of a GGUF header, in its order.

    header: a file up to its tensor data, with the types as before quantizing. file_type: llama_ftype.
    Raises ModelLoadError if the library does not know such a model.
    """
    load()
    function = _library().yarn_gguf_tensor_types
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_bool, ctypes.c_void_p]
    function.restype = ctypes.c_bool
    types = (ctypes.c_int * count)()
    with _captured_errors() as lines:
        done = function(header, len(header), file_type, has_imatrix, types)
    if not done:
        raise ModelLoadError(_reason(lines))
    return list(types)


def row_size(type_: int, elements: int) -> int:
    """Bytes of a row of `elements` in the ggml type `type_`."""
    return _ggml_base().ggml_row_size(type_, elements)


def quantize(matrix: np.ndarray, type_: int, importance: np.ndarray | None = None) -> np.ndarray | None:
    """What ggml's quantizer makes, on this thread alone, of float32 (rows, elements): uint8 (rows, row_size).

    importance: (elements,) float32. None if there is NaN or infinity, in the matrix or in the result.
    """
    ggml = _ggml_base()
    rows, elements = matrix.shape
    matrix = np.ascontiguousarray(matrix, np.float32)
    result = np.empty((rows, row_size(type_, elements)), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    if not ggml.ggml_validate_row_data(_F32, matrix.ctypes.data, matrix.nbytes):
        return None
    _quantizer()(type_, matrix.ctypes.data, result.ctypes.data, rows, elements, weights)
    is_sound = ggml.ggml_validate_row_data(type_, result.ctypes.data, result.nbytes)
    return result if is_sound else None


def check_loadable(paths: Sequence[Path]) -> None:
    """Let the library look at a model's file, or at all its parts in order, without reading a weight.

    It looks for every tensor that the architecture needs, at its shape, and for no other. Raises
    ModelLoadError with its reason.
    """
    llama_cpp = load()
    params = llama_cpp.llama_model_default_params()
    params.no_alloc, params.load_mode = True, llama_cpp.LLAMA_LOAD_MODE_NONE
    names = (ctypes.c_char_p * len(paths))(*(str(path).encode() for path in paths))
    with _captured_errors() as lines:
        model = llama_cpp.llama_model_load_from_splits(names, len(paths), params)
    if not model:
        raise ModelLoadError(_reason(lines))
    llama_cpp.llama_model_free(model)


class Bytes(ctypes.Structure):
    """struct yarn_gguf_bytes: on the host, and on all GPUs together."""

    _fields_ = (("host", ctypes.c_size_t), ("device", ctypes.c_size_t))


class Cache(ctypes.Structure):
    """struct yarn_gguf_cache: what layers of one kind remember. cells: tokens or states, of a layer."""

    _fields_ = (("layers", ctypes.c_uint32), ("cells", ctypes.c_uint32), ("bytes", Bytes))


class Memory(ctypes.Structure):
    """struct yarn_gguf_memory: what a model and a context on it take."""

    _fields_ = (
        ("weights", Bytes),
        ("compute", Bytes),
        ("attention", Cache),
        ("window", Cache),
        ("recurrent", Cache),
        ("other", Bytes),
        ("compressed", ctypes.c_bool),
    )


def memory_of(context: int) -> Memory:
    """What a context and its model have allocated."""
    function = _library().yarn_gguf_get_memory
    function.argtypes, function.restype = [ctypes.c_void_p], Memory
    return function(context)


class PaperModel:
    """A model without its weights, to measure what it would take. To be closed.

    gpu_layers: as many of its last layers, the output counted, are put on a GPU on paper, as -ngl says; None:
    there is no GPU. Raises ModelLoadError.
    """

    def __init__(self, path: str | Path, gpu_layers: int | None) -> None:
        llama_cpp = load()
        device = _library().yarn_gguf_paper_device
        device.restype = ctypes.c_void_p
        self._devices = (ctypes.c_void_p * 2)(None if gpu_layers is None else device(), None)
        params = llama_cpp.llama_model_default_params()
        params.no_alloc, params.load_mode = True, llama_cpp.LLAMA_LOAD_MODE_NONE
        params.devices = ctypes.cast(self._devices, ctypes.c_void_p)
        params.n_gpu_layers = gpu_layers or 0
        with _captured_errors() as lines:
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ModelLoadError(f"{path}: {_reason(lines)}")
        self.path = path

    @property
    def layers(self) -> int:
        """Layers that -ngl counts: one more than the model has, for its output."""
        llama_cpp = load()
        return (
            llama_cpp.llama_model_n_layer(self._model) + llama_cpp.llama_model_n_layer_nextn(self._model) + 1
        )

    @contextmanager
    def context(self, **params: Any) -> Iterator[int]:
        """A context, whose buffers have no memory. params: fields of llama_context_params.

        Raises ModelLoadError with the library's reason if there can be no such context.
        """
        llama_cpp = load()
        values = llama_cpp.llama_context_default_params()
        for name, value in params.items():
            setattr(values, name, value)
        with _captured_errors() as lines:
            context = llama_cpp.llama_init_from_model(self._model, values)
        if not context:
            raise ModelLoadError(f"{self.path}: {_reason(lines)}")
        try:
            yield context
        finally:
            llama_cpp.llama_free(context)

    def close(self) -> None:
        """Free what the library holds. May be called again."""
        if self._model:
            load().llama_model_free(self._model)
            self._model = None


def machine_memory() -> tuple[int, int]:
    """Bytes of this machine's RAM, and of the largest GPU that the library can use: 0 if there is none."""
    load()
    ggml = ctypes.CDLL(str(_library_in(library_folder().resolve(), "ggml")))
    base = _ggml_base()
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.argtypes, ggml.ggml_backend_dev_get.restype = [ctypes.c_size_t], ctypes.c_void_p
    base.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    base.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2]
    ram, gpu = 0, 0
    for index in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        base.ggml_backend_dev_memory(device, free, total)
        kind = base.ggml_backend_dev_type(device)
        if kind == _DEVICE_CPU:
            ram = total.value
        elif kind in _DEVICE_GPUS:
            gpu = max(gpu, total.value)
    return ram, gpu


# ----------------------------------------------------------------------------------------------


@contextmanager
def _captured_errors() -> Iterator[list[str]]:
    """Collects what the library logs as errors on this thread, instead of printing it."""
    outer = getattr(_captured, "lines", None)
    _captured.lines = lines = []
    try:
        yield lines
    finally:
        _captured.lines = outer


def _library() -> ctypes.CDLL:
    return sys.modules["llama_cpp.llama_cpp"]._lib


def _library_in(folder: Path, name: str = "llama") -> Path | None:
    names = [form.format(name) for form in _LIBRARY_NAMES.get(sys.platform, ("lib{}.so",))]
    return next((folder / each for each in names if (folder / each).is_file()), None)


@cache
def _quantizer() -> Callable[..., None]:
    """yarn_gguf_quantize, which leaves other Python threads running."""
    function = ctypes.CDLL(str(_library_in(library_folder().resolve()))).yarn_gguf_quantize
    function.argtypes = [
        ctypes.c_int,  # the type
        ctypes.c_void_p,  # float32
        ctypes.c_void_p,  # where to
        *[ctypes.c_int64] * 2,  # rows, elements of a row
        ctypes.c_void_p,  # importance
    ]
    function.restype = None
    return function


@cache
def _ggml_base() -> ctypes.CDLL:
    """The library of ggml's types. Its functions leave other Python threads running."""
    ggml = ctypes.CDLL(str(_library_in(library_folder().resolve(), "ggml-base")))
    ggml.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    ggml.ggml_validate_row_data.restype = ctypes.c_bool
    ggml.ggml_row_size.argtypes, ggml.ggml_row_size.restype = [ctypes.c_int, ctypes.c_int64], ctypes.c_size_t
    return ggml


def _variable_hint() -> str:
    chosen = os.environ.get(FOLDER_VARIABLE)
    return f"; or unset {FOLDER_VARIABLE}, which is {chosen}" if chosen else ""


def _exported_text(library: ctypes.CDLL, name: str) -> str | None:
    function = getattr(library, name, None)
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    return function().decode()


def _check_bindings(path: Path, needed: str | None) -> None:
    try:
        installed = version("llama-cpp-python")
    except PackageNotFoundError as error:
        raise NativeLibraryError(f"llama-cpp-python is not installed: {REINSTALL}") from error
    if installed != needed:
        raise NativeLibraryError(
            f"{path} fits llama-cpp-python {needed}, but {installed} is installed: {REINSTALL}"
        )


def _refuse_foreign_bindings(folder: Path) -> None:
    bindings = sys.modules.get("llama_cpp.llama_cpp")
    if bindings is None:
        return
    loaded = Path(bindings._base_path).resolve()
    if loaded != folder:
        raise NativeLibraryError(
            f"llama_cpp was already imported with the library in {loaded}; yarn_gguf needs the one in "
            f"{folder}: import yarn_gguf.llama (or yarn_gguf.Llama) before llama_cpp"
        )


def _reason(lines: list[str]) -> str:
    """The library's error lines without the names of its functions and its "failed to load model"."""
    said = [_LOG_PREFIX.sub("", line) for line in lines]
    return "; ".join(line for line in said if line != "failed to load model")


def _install_log_callback(llama_cpp: ModuleType) -> None:
    """Replace the bindings' log callback, which mistakes the library's levels, once."""
    if hasattr(_install_log_callback, "callback"):
        return
    logger = importlib.import_module("llama_cpp._logger").logger
    logger.setLevel(logging.ERROR)  # until a Llama(verbose=True) asks for more
    last_level = _LOG_LEVEL_ERROR

    @llama_cpp.llama_log_callback
    def callback(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        nonlocal last_level
        last_level = last_level if level == _LOG_LEVEL_CONTINUE else level
        lines = getattr(_captured, "lines", None)
        if lines is not None and level == _LOG_LEVEL_ERROR:
            lines.append(text.decode(errors="replace").strip())
        elif last_level == _LOG_LEVEL_ERROR or logger.level < logging.ERROR:
            print(text.decode(errors="replace"), end="", flush=True, file=sys.stderr)

    _install_log_callback.callback = callback  # the library keeps a pointer to it
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
