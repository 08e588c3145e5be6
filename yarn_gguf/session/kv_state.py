"""What a context has cached of its text, as bytes: the tokens of a range, or everything at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.ctypeslib import as_ctypes

from yarn_gguf.errors import SessionError
from yarn_gguf.native.log import native_refusals
from yarn_gguf.run.llama import Llama, llama_cpp

# The library writes and reads whole sequences: while a part of sequence 0 is written or read, this one has
# all cells, which stay where they are.
_ALL = llama_cpp.llama_max_parallel_sequences() - 1


def is_divisible(llama: Llama) -> bool:
    """Whether each token has cells of its own: recurrent layers and caches of a window's size forget."""
    model = llama._model.model
    is_recurrent = llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model)
    return not is_recurrent and (window_of(llama) == 0 or llama.context_params.swa_full)


def window_of(llama: Llama) -> int:
    """Tokens of the sliding window; 0 where there is none. A range that is read must not cross a multiple of
    it: of a longer one the library leaves out what its last token does not see."""
    return llama_cpp.llama_model_n_swa(llama._model.model)


def check_cache(llama: Llama) -> None:
    """Raises SessionError if the cache does not hold the tokens that `llama` believes to be there."""
    memory = llama_cpp.llama_get_memory(llama._ctx.ctx)
    if not memory:
        raise SessionError(f"{llama.model_path}: the model has no cache that a session could keep")
    first = llama_cpp.llama_memory_seq_pos_min(memory, 0)
    last = llama_cpp.llama_memory_seq_pos_max(memory, 0)
    is_whole = first <= 0 or not is_divisible(llama)
    if last + 1 != llama.n_tokens or not is_whole or (llama.input_ids[: llama.n_tokens] < 0).any():
        raise SessionError(
            f"the cache holds positions {first} to {last}, and {llama.n_tokens} tokens of text were read: a "
            "session keeps plain text from its beginning on, without shifts or images"
        )


def size_of(llama: Llama) -> int:
    """Bytes that everything takes."""
    return llama_cpp.llama_state_seq_get_size(llama._ctx.ctx, 0)


def read_all(llama: Llama) -> np.ndarray:
    """uint8 (bytes,)"""
    context = llama._ctx.ctx
    data = np.empty(llama_cpp.llama_state_get_size(context), np.uint8)
    with native_refusals(SessionError):
        if llama_cpp.llama_state_get_data(context, as_ctypes(data), len(data)) != len(data):
            raise RuntimeError("the library did not write the cache")
    return data


def write_all(llama: Llama, data: np.ndarray) -> None:
    """Raises SessionError with the library's reason; the cache may then hold anything."""
    context = llama._ctx.ctx
    with native_refusals(SessionError):
        if llama_cpp.llama_state_set_data(context, as_ctypes(data), len(data)) != len(data):
            raise RuntimeError("the library did not take the cache")


@contextmanager
def reading_ranges(llama: Llama) -> Iterator[Callable[[int, int], np.ndarray]]:
    """Yields read(first, stop): uint8 (bytes,) of the tokens of that range, in a buffer of its own."""
    context = llama._ctx.ctx
    memory = llama_cpp.llama_get_memory(context)

    def read(first: int, stop: int) -> np.ndarray:
        llama_cpp.llama_memory_seq_rm(memory, 0, -1, -1)
        llama_cpp.llama_memory_seq_cp(memory, _ALL, 0, first, stop)
        data = np.empty(llama_cpp.llama_state_seq_get_size(context, 0), np.uint8)
        with native_refusals(SessionError):
            if llama_cpp.llama_state_seq_get_data(context, as_ctypes(data), len(data), 0) != len(data):
                raise RuntimeError("the library did not write the cache")
        return data

    with _all_cells_kept(memory):
        yield read


@contextmanager
def writing_ranges(llama: Llama) -> Iterator[Callable[[np.ndarray, int], None]]:
    """Yields write(data, stop): puts a range back, of which tokens before `stop` are kept.

    Ranges come in their order, into an empty cache. Raises SessionError with the library's reason.
    """
    context = llama._ctx.ctx
    memory = llama_cpp.llama_get_memory(context)

    def write(data: np.ndarray, stop: int) -> None:
        with native_refusals(SessionError):
            if llama_cpp.llama_state_seq_set_data(context, as_ctypes(data), len(data), 0) != len(data):
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
