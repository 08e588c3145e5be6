"""A Hugging Face checkpoint: config.json, and its weights as lazy tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from gguf.utility import LocalTensor, SafetensorsLocal

from yarn_gguf.errors import ConversionError
from yarn_gguf.hf_config import Config, read_config

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}


@dataclass(frozen=True)
class Tensor:
    """A tensor that is read when it is needed. load() gives float32 of `shape`, row-major."""

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]

    def map(
        self, function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...] | None = None
    ) -> Tensor:
        """The tensor that `function` makes of this one; `shape` is its shape, where that changes."""
        return Tensor(shape or self.shape, lambda: function(self.load()))


@dataclass(frozen=True)
class Checkpoint:
    """config: of config.json. tensors: by their Hugging Face names."""

    config: Config
    tensors: dict[str, Tensor]


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """The checkpoint in `folder`, in one or many safetensors files. Raises ConversionError, OSError."""
    folder = Path(folder)
    config = read_config(folder)
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ConversionError(f"{folder}: no model*.safetensors: is this the folder of a checkpoint?")
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, stored in _open(file).items():
            tensors[name] = _tensor(file, name, stored)
    return Checkpoint(config, tensors)


def stack(tensors: Iterable[Tensor]) -> Tensor:
    """Equal tensors along a new first axis."""
    tensors = tuple(tensors)
    return Tensor((len(tensors), *tensors[0].shape), lambda: np.stack([each.load() for each in tensors]))


# ----------------------------------------------------------------------------------------------


def _open(file: Path) -> dict[str, LocalTensor]:
    try:
        return SafetensorsLocal(file).tensors
    except (ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{file}: damaged ({error}): download it again") from error


def _tensor(file: Path, name: str, stored: LocalTensor) -> Tensor:
    if stored.dtype not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise ConversionError(f"{file}: tensor {name} is {stored.dtype}: only {known} can be converted")
    return Tensor(tuple(stored.shape), partial(_load, stored))


def _load(stored: LocalTensor) -> np.ndarray:
    data = np.frombuffer(stored.mmap_bytes(), _DTYPES[stored.dtype]).reshape(stored.shape)
    if stored.dtype == "BF16":
        return (data.astype(np.uint32) << 16).view(np.float32)
    return data.astype(np.float32)
