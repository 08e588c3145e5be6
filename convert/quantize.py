"""Weights in ggml's types, by ggml's own quantizers, a few rows at a time on all cores.

Which tensor becomes what in a mix like q4_k_m is the native library's decision (tensor_types).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

import gguf
import numpy as np

from yarn_gguf.convert.imatrix import ImportanceMatrix
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.errors import ConversionError
from yarn_gguf.native.weights import quantize, row_size, tensor_types

GGMLType = gguf.GGMLQuantizationType

_CHUNK = 1 << 20  # elements that a thread takes at once: 4 MiB of float32
_NEEDS_IMPORTANCE = frozenset(
    GGMLType[name] for name in ("IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")
)
_DOES_WITHOUT = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")


@dataclass(frozen=True)
class Target:
    """A tensor as it will be in the file. importance: float32 (matrices, inputs), or None."""

    name: str
    tensor: Tensor
    type: GGMLType
    importance: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        shape = self.tensor.shape
        return prod(shape[:-1]) * row_size(self.type, shape[-1])


def file_type(name: str) -> gguf.LlamaFileType:
    """llama.cpp's number for a type of TYPES."""
    return gguf.LlamaFileType["ALL_F32" if name == "f32" else f"MOSTLY_{name.upper()}"]


def targets(
    tensors: dict[str, Tensor], header: bytes, file_type: int, imatrix: ImportanceMatrix | None
) -> list[Target]:
    """What each tensor becomes. header: of a file with these tensors in this order, in float32.

    Raises ConversionError where an importance matrix is needed, ModelLoadError.
    """
    types = tensor_types(header, len(tensors), file_type, imatrix is not None)
    result = []
    for (name, tensor), type_ in zip(tensors.items(), map(GGMLType, types), strict=True):
        importance = imatrix.of(name, tensor.shape) if imatrix else None
        if importance is None and type_ in _NEEDS_IMPORTANCE and name not in _DOES_WITHOUT:
            what = f"{imatrix.path} has none for it" if imatrix else "give --imatrix (imatrix)"
            raise ConversionError(f"{name} as {type_.name} needs an importance matrix: {what}")
        result.append(Target(name, tensor, type_, importance))
    return result


def quantized(wanted: Iterable[Target], threads: int | None = None) -> Iterator[tuple[Target, np.ndarray]]:
    """The bytes of the targets, in order, each in one or many pieces, uint8 of any shape.

    threads: None for all cores. What is under way at any moment is bounded, by two chunks a thread or one
    group of rows that cannot be divided. Raises ConversionError for NaN or infinity.
    """
    threads = threads or os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads)
    waiting, elements = deque(), 0
    try:
        for target, start, stop in _pieces(wanted):
            size = (stop - start) * prod(target.tensor.shape[1:])
            waiting.append((target, size, pool.submit(_quantize, target, start, stop)))
            elements += size
            while elements > 2 * threads * _CHUNK:
                done, size, future = waiting.popleft()
                elements -= size
                yield done, future.result()
        while waiting:
            done, _, future = waiting.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


# ----------------------------------------------------------------------------------------------


def _pieces(wanted: Iterable[Target]) -> Iterator[tuple[Target, int, int]]:
    """Each target in ranges of rows of about _CHUNK elements, at the bounds that its tensor has."""
    for target in wanted:
        shape, unit = target.tensor.shape, target.tensor.unit
        step = max(1, _CHUNK // max(1, unit * prod(shape[1:]))) * unit
        for start in range(0, shape[0], step):
            yield target, start, min(start + step, shape[0])


def _quantize(target: Target, start: int, stop: int) -> np.ndarray:
    data, importance = target.tensor.read(start, stop), target.importance
    if data.ndim < 3:
        matrices = [
            (data.reshape(-1, target.tensor.shape[-1]), None if importance is None else importance[0])
        ]
    else:
        matrices = zip(
            data, [None] * len(data) if importance is None else importance[start:stop], strict=True
        )
    done = [quantize(matrix, target.type, weights) for matrix, weights in matrices]
    if any(each is None for each in done):
        raise ConversionError(
            f"the tensor {target.name} of the checkpoint holds NaN, infinity, or what {target.type.name} "
            "cannot hold: download it again, or convert to bf16 or f32"
        )
    return done[0] if len(done) == 1 else np.concatenate(done)
