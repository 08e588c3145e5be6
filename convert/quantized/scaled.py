"""Weights with scales: one for a tensor, for each row, for each block, or for each group of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config

# scales of activations and of a quantized cache; the file has neither
OF_ACTIVATIONS = (".input_scale", ".input_zero_point", ".k_scale", ".v_scale", ".output_scale", ".q_scale")


def scaled(name: str, weight: Tensor, scale: Tensor, block: Sequence[int] | None, settings: Config) -> Tensor:
    """Return the float32 tensor `weight * scale`, where each scale counts for a block of the weight.

    block: the rows and columns of a block; None for one scale in all, or one for each row.
    Raises ConversionError if the scales do not fit.
    """
    shape = weight.shape
    grid = _grid(scale.shape)
    rows, columns = block or (_share(shape[0], grid[0]), _share(shape[-1], grid[1]))
    if len(shape) != 2 or grid != (-(-shape[0] // rows), -(-shape[1] // columns)):
        raise ConversionError(
            f"{settings.path}: {settings.place.rstrip('.')}: the scales {scale.shape} do not fit the tensor "
            f"{name} {shape} in blocks of {rows} x {columns}: download the checkpoint again"
        )

    def read(start: int, stop: int) -> np.ndarray:
        factors = scale_values(scale.load(), scale.dtype).reshape(grid)[np.arange(start, stop) // rows]
        return weight.read(start, stop) * np.repeat(factors, columns, axis=1)[:, : shape[1]]

    return Tensor(shape, read)


def scale_values(data: np.ndarray, dtype: str) -> np.ndarray:
    """Return scales of a stored type as float32. Bytes are exponents of two, as in OCP's formats (E8M0)."""
    if dtype == "U8":
        return np.ldexp(np.float32(1), data.astype(np.int32) - 127)
    return data.astype(np.float32)


def partner(tensors: Mapping[str, Tensor], name: str, settings: Config) -> Tensor:
    """Return the tensor `name`, without which another one cannot be read. Raises ConversionError."""
    if name not in tensors:
        raise ConversionError(
            f"{settings.path.parent}: the tensor {name} is missing, which belongs to a quantized weight: "
            "download the checkpoint again"
        )
    return tensors[name]


def new_name(tensors: Mapping[str, Tensor], name: str, settings: Config) -> str:
    """Return the name of a weight that is made of others. Raises ConversionError if it exists."""
    if name in tensors:
        raise ConversionError(
            f"{settings.path.parent}: the tensor {name} is there twice, quantized and not: download the "
            "checkpoint again"
        )
    return name


def groups_of(index: Tensor | None, inputs: int, groups: int, settings: Config) -> np.ndarray:
    """Return the group of each input. index: lists them; None for groups of neighbours.

    Raises ConversionError for a group that does not exist.
    """
    if index is None:
        return np.arange(inputs) // _share(inputs, groups)
    found = index.load()
    if found.min() < 0 or found.max() >= groups:
        raise ConversionError(
            f"{settings.path.parent}: a g_idx names a group that is none of {groups}: download the "
            "checkpoint again"
        )
    return found


def _grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return rows and columns of the scales."""
    padded = (*shape, 1, 1)
    return padded[0], padded[1]


def _share(size: int, parts: int) -> int:
    return -(-size // parts)
