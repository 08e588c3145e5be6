"""Weights in ggml's types: ggml's own quantizers, a few rows at a time, on all cores.

The native library decides which tensor of a mix like q4_k_m gets which type (tensor_types).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

import gguf
import numpy as np

from yarn_gguf.convert.imatrix import ImportanceMatrix
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.errors import ConversionError, OtherModelError
from yarn_gguf.gguf.header import TensorInfo
from yarn_gguf.native.weights import quantize, row_size, tensor_types

GGMLType = gguf.GGMLQuantizationType

_CHUNK = 1 << 20  # elements that a thread takes at once: 4 MiB of float32
_NEEDS_IMPORTANCE = (
    *(GGMLType.IQ3_XXS, GGMLType.IQ2_S, GGMLType.IQ2_XS, GGMLType.IQ2_XXS),
    *(GGMLType.IQ1_M, GGMLType.IQ1_S),
)
_HAS_NO_QUANTIZER = (  # ggml_quantize_chunk ends the process for these
    *(GGMLType.Q8_1, GGMLType.Q8_K, GGMLType.F64),
    *(GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64),
)
# exempt in llama.cpp too (tensor_requires_imatrix)
_EXEMPT = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")


@dataclass(frozen=True)
class Target:
    """A tensor and its type in the file. importance: float32 (matrices, inputs), or None."""

    name: str
    tensor: Tensor
    type: GGMLType
    importance: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Bytes in the file, without padding."""
        shape = self.tensor.shape
        return prod(shape[:-1]) * row_size(self.type, shape[-1])


def file_type(name: str) -> gguf.LlamaFileType:
    """Return llama.cpp's number for a type of TYPES."""
    return gguf.LlamaFileType["ALL_F32" if name == "f32" else f"MOSTLY_{name.upper()}"]


def targets(
    tensors: dict[str, Tensor], header: bytes, file_type: int, imatrix: ImportanceMatrix | None
) -> list[Target]:
    """Return the tensors with their types. header: of a file with these tensors in this order, in float32.

    Raises ConversionError if a type needs importances that are missing, or ModelLoadError.
    """
    types = tensor_types(header, len(tensors), file_type, imatrix is not None)
    result = []
    for (name, tensor), type_ in zip(tensors.items(), map(GGMLType, types), strict=True):
        importance = imatrix.of(name, tensor.shape) if imatrix else None
        if importance is None and type_ in _NEEDS_IMPORTANCE and name not in _EXEMPT:
            what = f"{imatrix.path} has none for it" if imatrix else "give --imatrix (imatrix)"
            raise ConversionError(f"{name} as {type_.name} needs an importance matrix: {what}")
        result.append(Target(name, tensor, type_, importance))
    return result


def targets_like(tensors: dict[str, Tensor], stored: Mapping[str, TensorInfo]) -> list[Target]:
    """Return the tensors with the types that tensors of the same names have in another file.

    A type that needs importances gets equal ones. Raises OtherModelError unless every tensor is `stored` in
    the same shape, ConversionError for a type that ggml cannot quantize to.
    """
    result = []
    for name, tensor in tensors.items():
        like = stored.get(name)
        if like is None:
            raise OtherModelError(f"it has no tensor {name}, and the checkpoint has one")
        shape = tuple(reversed(like.dims))  # ggml has the innermost dimension first
        if shape != tensor.shape:
            raise OtherModelError(f"{name} is {_size(shape)}, and {_size(tensor.shape)} in the checkpoint")
        if like.type not in list(GGMLType) or like.type in _HAS_NO_QUANTIZER:
            raise ConversionError(f"{name}: ggml has no quantizer for its type {like.type}")
        importance = None
        if like.type in _NEEDS_IMPORTANCE:
            importance = np.ones((shape[0] if len(shape) == 3 else 1, shape[-1]), np.float32)
        result.append(Target(name, tensor, GGMLType(like.type), importance))
    return result


def quantized(wanted: Iterable[Target], threads: int | None = None) -> Iterator[tuple[Target, np.ndarray]]:
    """Yield the bytes of the targets in order, each in one or many pieces: uint8 of any shape.

    threads: None for all cores. Work under way is limited to two chunks a thread, or to one group of rows
    that can only be made together. Raises ConversionError for NaN or infinity.
    """
    threads = threads or os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads)
    waiting: deque[tuple[Target, int, Future[np.ndarray]]] = deque()
    elements = 0
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


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _pieces(wanted: Iterable[Target]) -> Iterator[tuple[Target, int, int]]:
    """Yield each target in ranges of rows: about _CHUNK elements, whole multiples of the tensor's unit."""
    for target in wanted:
        shape, unit = target.tensor.shape, target.tensor.unit
        step = max(1, _CHUNK // max(1, unit * prod(shape[1:]))) * unit
        for start in range(0, shape[0], step):
            yield target, start, min(start + step, shape[0])


def _quantize(target: Target, start: int, stop: int) -> np.ndarray:
    """Return rows `start` to `stop` in the target's type; every expert has its own importances."""
    data, importances = target.tensor.read(start, stop), target.importance
    if data.ndim == 3:  # a matrix an expert
        importances = None if importances is None else importances[start:stop]
    else:
        data = data.reshape(1, -1, target.tensor.shape[-1])
    pieces = []
    for i, matrix in enumerate(data):
        piece = quantize(matrix, target.type, None if importances is None else importances[i])
        if piece is None:
            raise ConversionError(
                f"the tensor {target.name} of the checkpoint holds NaN, infinity, or what "
                f"{target.type.name} cannot hold: download it again, or convert to bf16 or f32"
            )
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
