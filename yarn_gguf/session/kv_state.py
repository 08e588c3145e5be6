"""The cache of a Llama as bytes: the keys and values of a range of tokens, or everything at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.ctypeslib import as_ctypes

from yarn_gguf.errors import SessionError
from yarn_gguf.native.log import native_refusals
from yarn_gguf.run.handles import llama_cpp
from yarn_gguf.run.llama import Llama

# The library writes and reads whole sequences. While a part of sequence 0 is written or read, this one has
# all cells, which stay where they are.
_ALL = llama_cpp.llama_max_parallel_sequences() - 1


def is_divisible(llama: Llama) -> bool:
    """Return whether each token has its own cells. Recurrent layers and caches of a window's size forget."""
    model = llama.model
    is_recurrent = llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model)
    return not is_recurrent and (llama.vocabulary.window == 0 or llama.context_params.swa_full)


def check_cache(llama: Llama) -> None:
    """Raise SessionError if the cache does not hold exactly the cached text, from its beginning on."""
    memory = llama_cpp.llama_get_memory(llama.ctx)
    if not memory:
        raise SessionError(f"{llama.model_path}: the model has no cache that a session could keep")
    first = llama_cpp.llama_memory_seq_pos_min(memory, 0)
    last = llama_cpp.llama_memory_seq_pos_max(memory, 0)
    text = llama.cached_text
    is_whole = first <= 0 or not is_divisible(llama)
    if last + 1 != len(text) or not is_whole or (text.tokens < 0).any():
        raise SessionError(
            f"the cache holds positions {first} to {last}, and {len(text)} tokens of text were read: a "
            "session keeps plain text from its beginning on, without shifts or images"
        )


def size_of(llama: Llama) -> int:
    """Return the bytes of the whole cache as a state."""
    return llama_cpp.llama_state_seq_get_size(llama.ctx, 0)


def read_all(llama: Llama) -> np.ndarray:
    """Return the whole cache: uint8 (bytes,). Raises SessionError."""
    data = np.empty(llama_cpp.llama_state_get_size(llama.ctx), np.uint8)
    with native_refusals(SessionError):
        if llama_cpp.llama_state_get_data(llama.ctx, as_ctypes(data), len(data)) != len(data):
            raise RuntimeError("the library did not write the cache")
    return data


def write_all(llama: Llama, data: np.ndarray) -> None:
    """Fill the whole cache. Raises SessionError with the reason; the cache may then hold anything."""
    with native_refusals(SessionError):
        if llama_cpp.llama_state_set_data(llama.ctx, as_ctypes(data), len(data)) != len(data):
            raise RuntimeError("the library did not take the cache")


@contextmanager
def reading_ranges(llama: Llama) -> Iterator[Callable[[int, int], np.ndarray]]:
    """Yield read(first, stop), which returns the cells of these tokens in a new buffer: uint8 (bytes,).

    A range must not cross a multiple of the sliding window: of a longer one the library leaves out the cells
    that its last token does not see.
    """
    memory = llama_cpp.llama_get_memory(llama.ctx)

    def read(first: int, stop: int) -> np.ndarray:
        llama_cpp.llama_memory_seq_rm(memory, 0, -1, -1)
        llama_cpp.llama_memory_seq_cp(memory, _ALL, 0, first, stop)
        data = np.empty(llama_cpp.llama_state_seq_get_size(llama.ctx, 0), np.uint8)
        with native_refusals(SessionError):
            if llama_cpp.llama_state_seq_get_data(llama.ctx, as_ctypes(data), len(data), 0) != len(data):
                raise RuntimeError("the library did not write the cache")
        return data

    with _all_cells_kept(memory):
        yield read


@contextmanager
def writing_ranges(llama: Llama) -> Iterator[Callable[[np.ndarray, int], None]]:
    """Yield write(data, stop), which puts a range back and keeps its tokens before `stop`.

    Ranges come in their order, into an empty cache. Raises SessionError with the library's reason.
    """
    memory = llama_cpp.llama_get_memory(llama.ctx)

    def write(data: np.ndarray, stop: int) -> None:
        with native_refusals(SessionError):
            if llama_cpp.llama_state_seq_set_data(llama.ctx, as_ctypes(data), len(data), 0) != len(data):
                raise RuntimeError("the library did not take the cache")
        llama_cpp.llama_memory_seq_rm(memory, 0, stop, -1)
        llama_cpp.llama_memory_seq_cp(memory, 0, _ALL, -1, -1)

    with _all_cells_kept(memory):
        yield write


@contextmanager
def _all_cells_kept(memory: int) -> Iterator[None]:
    llama_cpp.llama_memory_seq_cp(memory, 0, _ALL, -1, -1)
    try:
        yield
    finally:
        llama_cpp.llama_memory_seq_rm(memory, 0, -1, -1)
        llama_cpp.llama_memory_seq_cp(memory, _ALL, 0, -1, -1)
        llama_cpp.llama_memory_seq_rm(memory, _ALL, -1, -1)
