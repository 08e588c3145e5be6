"""A Hugging Face checkpoint: config.json, and its weights as lazy tensors.

A tensor's rows are read on demand and not kept, so that memory does not grow with the model. The headers
of the files are checked before any weight is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from gguf.utility import LocalTensor, SafetensorsLocal

from yarn_gguf.convert.pytorch import open_pytorch
from yarn_gguf.convert.tensor import NO_WEIGHTS, Tensor
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config, read_config

AGAIN = "download the checkpoint again"
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}


@dataclass(frozen=True)
class Checkpoint:
    """config: config.json. tensors: by their Hugging Face names."""

    config: Config
    tensors: dict[str, Tensor]


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Return the checkpoint in `folder`: safetensors or PyTorch files, one or many.

    Raises ConversionError, RopeScalingError (for config.json) or OSError.
    """
    folder = Path(folder)
    config = read_config(folder)
    for stem, suffix, open_file in (
        ("model", "safetensors", _open_safetensors),
        ("pytorch_model", "bin", open_pytorch),
    ):
        index = folder / f"{stem}.{suffix}.index.json"
        files = sorted(folder.glob(f"{stem}*.{suffix}"))
        if index.exists():
            return Checkpoint(config, _read_indexed(index, open_file))
        if files:
            return Checkpoint(config, _merge(files, open_file))
    raise ConversionError(f"{folder}: neither model*.safetensors nor pytorch_model*.bin: is it a checkpoint?")


def has_weights(folder: Path) -> bool:
    """Return whether `folder` has the weights of a whole model."""
    return any(True for pattern in ("model*.safetensors", "pytorch_model*.bin") for _ in folder.glob(pattern))


def open_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of one file, safetensors or PyTorch. Raises ConversionError or OSError."""
    return _open_safetensors(file) if file.suffix == ".safetensors" else open_pytorch(file)


# ----------------------------------------------------------------------------------------------

_Opener = Callable[[Path], dict[str, Tensor]]


def _merge(files: Iterable[Path], open_file: _Opener) -> dict[str, Tensor]:
    """Return the tensors of all files. Raise ConversionError for a tensor that is in two of them."""
    tensors: dict[str, Tensor] = {}
    home: dict[str, Path] = {}
    for file in files:
        for name, tensor in open_file(file).items():
            if name in home:
                raise ConversionError(f"{file}: tensor {name} is also in {home[name].name}: {AGAIN}")
            tensors[name], home[name] = tensor, file
    return tensors


def _read_indexed(index: Path, open_file: _Opener) -> dict[str, Tensor]:
    """Return the tensors that the index names. Raise ConversionError if the shards hold other ones."""
    places = _weight_map(index)
    files = [index.parent / name for name in sorted(set(places.values()))]
    for file in files:
        if not file.is_file():
            raise ConversionError(f"{file} is missing, which {index.name} names: {AGAIN}")
    tensors = _merge(files, open_file)
    for name in tensors.keys() ^ places.keys():
        where = "its shard does not hold it" if name in places else "the index does not name it"
        raise ConversionError(f"{index}: tensor {name}: {where}: {AGAIN}")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file name of each tensor's shard. Raise ConversionError for a path to another folder."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = set(places.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{index}: damaged ({error!r}): {AGAIN}") from error
    for name in names:
        if not isinstance(name, str) or name != Path(name).name or "\\" in name or name in ("", ".", ".."):
            raise ConversionError(f"{index}: {name!r} is not a file name: a shard must lie beside its index")
    return places


def _open_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        stored = SafetensorsLocal(file).tensors
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConversionError(f"{file}: damaged ({error}): {AGAIN}") from error
    size = file.stat().st_size
    weights = ((name, each) for name, each in stored.items() if not name.endswith(NO_WEIGHTS))
    return {name: _safetensor(file, size, name, each) for name, each in weights}


def _safetensor(file: Path, file_size: int, name: str, stored: LocalTensor) -> Tensor:
    if stored.dtype not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise ConversionError(f"{file}: tensor {name} is {stored.dtype}: only {known} can be converted")
    dtype, shape, place = np.dtype(_DTYPES[stored.dtype]), tuple(stored.shape), stored.data_range
    needed = dtype.itemsize * math.prod(shape)
    if place.size != needed or place.offset + needed > file_size or min((*shape, place.offset)) < 0:
        has = f"{place.size} bytes at {place.offset} of {file_size}"
        raise ConversionError(f"{file}: tensor {name} {shape} needs {needed} bytes and has {has}: {AGAIN}")
    return Tensor(shape, partial(_read_rows, file, name, stored.dtype, shape, place.offset))


def _read_rows(
    file: Path, name: str, dtype: str, shape: tuple[int, ...], offset: int, start: int, stop: int
) -> np.ndarray:
    """Read rows as float32.

    They are not mapped: mapped pages count as our memory, and a file that is cut short meanwhile ends the
    process (SIGBUS).
    """
    row = math.prod(shape[1:])
    item = np.dtype(_DTYPES[dtype])
    try:
        data = np.fromfile(file, item, (stop - start) * row, offset=offset + start * row * item.itemsize)
    except OSError as error:
        raise ConversionError(f"{file}: tensor {name} cannot be read ({error.strerror})") from error
    if len(data) != (stop - start) * row:
        raise ConversionError(f"{file}: was cut short while it was read: {AGAIN}")
    return _as_float32(data, dtype).reshape(stop - start, *shape[1:])


def _as_float32(data: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "BF16":
        return data.astype(np.float32, copy=False)
    wide = data.astype(np.uint32)
    np.left_shift(wide, 16, out=wide)
    return wide.view(np.float32)
