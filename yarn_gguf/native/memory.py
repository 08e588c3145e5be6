"""Measure memory: of a context, of a context on paper, and of this machine."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yarn_gguf.errors import ModelLoadError
from yarn_gguf.native.library import ggml, ggml_base, library, load
from yarn_gguf.native.log import captured_errors, reason
from yarn_gguf.native.prototypes import ContextMemory

_CPU, _GPU, _INTEGRATED_GPU = 0, 1, 2  # enum ggml_backend_dev_type in ggml-backend.h


def memory_of(context: int) -> ContextMemory:
    """Return the memory that a context and its model have allocated, or would allocate if on paper."""
    return library().yarn_gguf_get_memory(context)


class PaperModel:
    """A model without its weights, to measure the memory that it would take. Close it after use.

    gpu_layers: how many of the last layers are put on a GPU on paper. The output counts as one, as for -ngl.
        None: there is no GPU.

    Raises ModelLoadError.
    """

    def __init__(self, path: str | Path, gpu_layers: int | None) -> None:
        llama_cpp = load()
        device = None if gpu_layers is None else library().yarn_gguf_paper_device()
        self._devices = (ctypes.c_void_p * 2)(device, None)
        params = llama_cpp.llama_model_default_params()
        params.no_alloc, params.load_mode = True, llama_cpp.LLAMA_LOAD_MODE_NONE
        params.devices = ctypes.cast(self._devices, ctypes.c_void_p)
        params.n_gpu_layers = gpu_layers or 0
        with captured_errors() as lines:
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ModelLoadError(f"{path}: {reason(lines)}")
        self.path = path

    @property
    def layers(self) -> int:
        """The number of layers that -ngl counts: all of the model, and the output as one more."""
        llama_cpp = load()
        return (
            llama_cpp.llama_model_n_layer(self._model) + llama_cpp.llama_model_n_layer_nextn(self._model) + 1
        )

    @contextmanager
    def context(self, **params: Any) -> Iterator[int]:
        """Yield a context whose buffers have no memory. params: fields of llama_context_params.

        Raises ModelLoadError, with the library's reason, if it refuses such a context.
        """
        llama_cpp = load()
        values = llama_cpp.llama_context_default_params()
        for name, value in params.items():
            setattr(values, name, value)
        with captured_errors() as lines:
            context = llama_cpp.llama_init_from_model(self._model, values)
        if not context:
            raise ModelLoadError(f"{self.path}: {reason(lines)}")
        try:
            yield context
        finally:
            llama_cpp.llama_free(context)

    def close(self) -> None:
        """Free the library's objects. May be called again."""
        if self._model:
            load().llama_model_free(self._model)
            self._model = None


def machine_memory() -> tuple[int, int]:
    """Return the bytes of this machine's RAM, and of the largest GPU that the library can use (0: no GPU)."""
    load()
    ram, gpu = 0, 0
    for index in range(ggml().ggml_backend_dev_count()):
        device = ggml().ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ggml_base().ggml_backend_dev_memory(device, free, total)
        kind = ggml_base().ggml_backend_dev_type(device)
        if kind == _CPU:
            ram = total.value
        elif kind in (_GPU, _INTEGRATED_GPU):
            gpu = max(gpu, total.value)
    return ram, gpu
