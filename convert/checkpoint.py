"""A Hugging Face checkpoint: config.json, and its weights as lazy tensors.

A tensor's rows are read on demand and not kept, so that memory does not grow with the model. The headers
of the files are checked before any weight is read.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf.utility import LocalTensor, SafetensorsLocal

from yarn_gguf.convert.dtypes import FLOATS, STORED_AS, WHOLE_NUMBERS, values
from yarn_gguf.convert.pytorch import open_pytorch
from yarn_gguf.convert.tensor import NO_WEIGHTS, Tensor
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config, read_config

_log = logging.getLogger(__name__)
AGAIN = "download the checkpoint again"
_Opener = Callable[[Path], dict[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """config: config.json. tensors: by their Hugging Face names."""

    config: Config
    tensors: dict[str, Tensor]


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Return the checkpoint in `folder`: safetensors or PyTorch files, one or many.

    The files are those that transformers would load. Logs a warning if others of their kind lie beside them.
    Raises ConversionError, RopeScalingError (for config.json) or OSError.
    """
    folder = Path(folder)
    config = read_config(folder)
    if named := config.values.get("transformers_weights"):
        return Checkpoint(config, _read_named(config, named))
    for kind in _KINDS:
        tensors = _read_kind(folder, kind)
        if tensors is not None:
            return Checkpoint(config, tensors)
    names = " nor ".join(f"{stem}.{suffix}" for stem, suffix, _ in _KINDS)
    found = sorted(each.name for stem, suffix, _ in _KINDS for each in folder.glob(f"{stem}*.{suffix}"))
    remedy = f"if {found[0]} has the weights, give it such a name" if found else "is it a checkpoint?"
    raise ConversionError(f"{folder}: neither {names}: {remedy}")


def has_weights(config: Config) -> bool:
    """Return whether a file of weights that transformers would look for lies beside config.json."""
    names = (each.name for each in config.path.parent.iterdir())
    return bool(config.values.get("transformers_weights")) or any(map(_WEIGHTS.fullmatch, names))


def open_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of one file, safetensors or PyTorch, which must be floats.

    Raises ConversionError or OSError.
    """
    tensors = _open_safetensors(file) if file.suffix == ".safetensors" else open_pytorch(file)
    for name, tensor in tensors.items():
        if tensor.dtype in WHOLE_NUMBERS:
            raise ConversionError(
                f"{file}: tensor {name} is {tensor.dtype}: only {', '.join(FLOATS)} are read"
            )
    return tensors


# ----------------------------------------------------------------------------------------------


def _read_named(config: Config, name: Any) -> dict[str, Tensor]:
    """Return the tensors in the file, or of the index, that config.json names. Raises ConversionError."""
    place = f"{config.path}: transformers_weights"
    if not _is_file_name(name) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise ConversionError(f"{place} is {name!r}: a .safetensors beside it, or its index, is expected")
    file = config.path.with_name(name)
    if not file.is_file():
        raise ConversionError(f"{place} is {name}, which is missing: {AGAIN}")
    is_index = name.endswith(".json")
    return _read_indexed(file, _open_safetensors) if is_index else _merge([file], _open_safetensors)


def _read_kind(folder: Path, kind: tuple[str, str, _Opener]) -> dict[str, Tensor] | None:
    """Return the tensors in the files of a kind, None if there are no such files.

    One file counts before an index, and an index before shards that lack one.
    """
    stem, suffix, open_file = kind
    whole, index = folder / f"{stem}.{suffix}", folder / f"{stem}.{suffix}.index.json"
    if whole.is_file():
        if index.exists():
            _log.warning(f"{whole} is read, and not the shards of {index.name}: transformers does the same")
        return _merge([whole], open_file)
    if index.is_file():
        return _read_indexed(index, open_file)
    shards = _shards_without_index(folder, index.name, re.compile(rf"{stem}-(\d+)-of-(\d+)\.{suffix}"))
    return _merge(shards, open_file) if shards else None


def _shards_without_index(folder: Path, index: str, pattern: re.Pattern[str]) -> list[Path]:
    """Return the shards whose names match (number, count). Raise ConversionError if some are missing."""
    found = {each: match for each in sorted(folder.iterdir()) if (match := pattern.fullmatch(each.name))}
    counts = {int(match[2]) for match in found.values()}
    present = {int(match[1]) for match in found.values()}
    if len(counts) > 1:
        raise ConversionError(f"{folder}: shards of {len(counts)} checkpoints, and no {index}: {AGAIN}")
    if missing := set(range(1, max(counts, default=0) + 1)) - present:
        raise ConversionError(
            f"{folder}: of {max(counts)} shards number {min(missing)} is missing, and so is {index}: {AGAIN}"
        )
    return list(found)


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
    places = {name: file for name, file in _weight_map(index).items() if not name.endswith(NO_WEIGHTS)}
    if not places:
        raise ConversionError(f"{index}: it names no weights: {AGAIN}")
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
        if not _is_file_name(name):
            raise ConversionError(f"{index}: {name!r} is not a file name: a shard must lie beside its index")
    return places


def _is_file_name(name: Any) -> bool:
    """Return whether `name` is the name of a file, without a folder."""
    return isinstance(name, str) and name == Path(name).name and "\\" not in name and name not in ("", "..")


def _open_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        stored = SafetensorsLocal(file).tensors
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConversionError(f"{file}: damaged ({error}): {AGAIN}") from error
    size = file.stat().st_size
    weights = ((name, each) for name, each in stored.items() if not name.endswith(NO_WEIGHTS))
    return {name: _safetensor(file, size, name, each) for name, each in weights}


def _safetensor(file: Path, file_size: int, name: str, stored: LocalTensor) -> Tensor:
    if stored.dtype not in STORED_AS:
        known = ", ".join(STORED_AS)
        raise ConversionError(f"{file}: tensor {name} is {stored.dtype}: only {known} can be converted")
    dtype, shape, place = np.dtype(STORED_AS[stored.dtype]), tuple(stored.shape), stored.data_range
    needed = dtype.itemsize * math.prod(shape)
    if place.size != needed or place.offset + needed > file_size or min((*shape, place.offset)) < 0:
        has = f"{place.size} bytes at {place.offset} of {file_size}"
        raise ConversionError(f"{file}: tensor {name} {shape} needs {needed} bytes and has {has}: {AGAIN}")
    read = partial(_read_rows, file, name, stored.dtype, shape, place.offset)
    return Tensor(shape, read, dtype=stored.dtype)


def _read_rows(
    file: Path, name: str, dtype: str, shape: tuple[int, ...], offset: int, start: int, stop: int
) -> np.ndarray:
    """Read rows as float32, or as whole numbers.

    They are not mapped: mapped pages count as our memory, and a file that is cut short meanwhile ends the
    process (SIGBUS).
    """
    row = math.prod(shape[1:])
    item = np.dtype(STORED_AS[dtype])
    try:
        data = np.fromfile(file, item, (stop - start) * row, offset=offset + start * row * item.itemsize)
    except OSError as error:
        raise ConversionError(f"{file}: tensor {name} cannot be read ({error.strerror})") from error
    if len(data) != (stop - start) * row:
        raise ConversionError(f"{file}: was cut short while it was read: {AGAIN}")
    return values(data, dtype).reshape(stop - start, *shape[1:])


# stem, suffix and opener of the files, in the order in which transformers looks for them
_KINDS: tuple[tuple[str, str, _Opener], ...] = (
    ("model", "safetensors", _open_safetensors),
    ("pytorch_model", "bin", open_pytorch),
)
_WEIGHTS = re.compile(
    "|".join(rf"{stem}(-\d+-of-\d+)?\.{suffix}(\.index\.json)?" for stem, suffix, _ in _KINDS)
)
