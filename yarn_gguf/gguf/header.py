"""Read and assemble the header of a GGUF file, version 2 or 3: keys and tensor infos, never the weights.

The format is described in ggml's gguf.h. A key keeps the bytes that it had in the file, so that a change of
other keys copies it verbatim.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from yarn_gguf.errors import GGUFError
from yarn_gguf.gguf.cursor import AGAIN, LENGTH, NUMBER, NUMBER_FORMATS, Cursor, ValueType

__all__ = [
    "AGAIN",
    "DEFAULT_ALIGNMENT",
    "PREAMBLE_SIZE",
    "Header",
    "KeyValue",
    "TensorInfo",
    "ValueType",
    "align",
    "assemble",
    "key_value",
    "parse_header",
    "read_floats",
    "read_header",
    "tensor_size",
]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32

_PREAMBLE = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of keys
PREAMBLE_SIZE = _PREAMBLE.size
_SMALLEST_KEY = 8 + 4 + 1  # bytes: an empty name, a type, one byte
_SMALLEST_TENSOR = 8 + 4 + 4 + 8  # bytes: an empty name, no dimension, a type, an offset
_LOW_HALF = 0xFFFF  # of a version: zero in a small number of the other byte order
_F32 = 0  # GGML_TYPE_F32


@dataclass(frozen=True)
class KeyValue:
    """A key with its value.

    raw: the bytes that the file holds: name, type and value. value_start: where the value starts in raw.
    """

    key: str
    type: ValueType
    raw: bytes = field(repr=False)
    value_start: int = field(repr=False)

    @property
    def value(self) -> Any:
        """The value: a number, a bool, a str, or a list of these. Decoded at each access."""
        return Cursor(self.raw, self.key, self.value_start).value(self.type, self.key)

    @property
    def count(self) -> int:
        """The number of elements of an ARRAY; 1 for another type. Decodes no element."""
        if self.type != ValueType.ARRAY:
            return 1
        return LENGTH.unpack_from(self.raw, self.value_start + NUMBER.size)[0]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's name, dims (innermost first), ggml type, and offset within the tensor data in bytes."""

    name: str
    dims: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class Header:
    """The part of a GGUF file before its tensor data. Offsets and sizes are in bytes.

    tensor_section: the tensor infos as the file holds them.
    """

    path: Path
    version: int
    entries: dict[str, KeyValue] = field(repr=False)
    tensors: dict[str, TensorInfo] = field(repr=False)
    tensor_section: bytes = field(repr=False)
    alignment: int
    data_offset: int
    file_size: int

    def get(self, key: str, type_: ValueType, default: Any = None) -> Any:
        """Return the value of `key`, or `default` if the file lacks it. Raises GGUFError for another type."""
        entry = self.entries.get(key)
        if entry is None:
            return default
        if entry.type != type_:
            raise GGUFError(
                f"{self.path}: {key} is of type {entry.type.name}, and llama.cpp reads {type_.name}: "
                "convert the model again"
            )
        return entry.value


def read_header(path: str | Path) -> Header:
    """Read the header of the file at `path`. Raises GGUFError if it is no sound GGUF file; OSError."""
    path = Path(path)
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size == 0:
            raise GGUFError(f"{path}: the file is empty: download it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse_header(data, path, size)


def parse_header(data: bytes | mmap.mmap, path: Path, file_size: int) -> Header:
    """Parse the header in `data`, the first bytes of the file at `path`, which has `file_size` bytes.

    Raises GGUFError.
    """
    cursor = Cursor(data, str(path))
    version, n_tensors, n_keys = _read_preamble(cursor, path)
    entries: dict[str, KeyValue] = {}
    for number in range(n_keys):
        entry = _read_key_value(cursor, f"key {number + 1} of {n_keys}")
        if entry.key in entries:
            raise GGUFError(f"{path}: the key {entry.key!r} is there twice: {AGAIN}")
        entries[entry.key] = entry
    start = cursor.position
    tensors: dict[str, TensorInfo] = {}
    for number in range(n_tensors):
        tensor = _read_tensor_info(cursor, f"tensor {number + 1} of {n_tensors}")
        if tensor.name in tensors:
            raise GGUFError(f"{path}: the tensor {tensor.name!r} is there twice: {AGAIN}")
        tensors[tensor.name] = tensor
    section = bytes(data[start : cursor.position])
    alignment = _alignment(path, entries)
    data_offset = align(cursor.position, alignment) if tensors else cursor.position
    header = Header(path, version, entries, tensors, section, alignment, data_offset, file_size)
    _check_extents(header)
    return header


def key_value(key: str, type_: ValueType, value: Any) -> KeyValue:
    """Return a key with a value.

    value: a number, a bool or a str; for an ARRAY, bytes (elements are UINT8) or a tuple of floats (FLOAT64).
    """
    name = key.encode()
    start = LENGTH.pack(len(name)) + name + NUMBER.pack(type_)
    if type_ == ValueType.ARRAY:
        element = ValueType.UINT8 if isinstance(value, bytes) else ValueType.FLOAT64
        data = value if isinstance(value, bytes) else struct.pack(f"<{len(value)}d", *value)
        raw = NUMBER.pack(element) + LENGTH.pack(len(value)) + data
    elif type_ == ValueType.STRING:
        text = value.encode()
        raw = LENGTH.pack(len(text)) + text
    else:
        raw = NUMBER_FORMATS[type_].pack(value)
    return KeyValue(key, type_, start + raw, len(start))


def assemble(header: Header, entries: Iterable[KeyValue]) -> bytes:
    """Return the bytes of a header with `entries` and the tensors of `header`, without the final padding."""
    raw = [entry.raw for entry in entries]
    preamble = _PREAMBLE.pack(MAGIC, header.version, len(header.tensors), len(raw))
    return b"".join([preamble, *raw, header.tensor_section])


def align(position: int, alignment: int) -> int:
    """Return the first multiple of `alignment` that is not below `position`."""
    return -(-position // alignment) * alignment


def read_floats(header: Header, name: str) -> tuple[float, ...] | None:
    """Return the values of the tensor `name`, a list of float32 in the header's file; None if it is missing.

    Raises GGUFError for a tensor of another type or shape, OSError.
    """
    tensor = header.tensors.get(name)
    if tensor is None:
        return None
    if tensor.type != _F32 or len(tensor.dims) != 1:
        raise GGUFError(f"{header.path}: the tensor {name} is no list of F32: convert the model again")
    with header.path.open("rb") as file:
        file.seek(header.data_offset + tensor.offset)
        return tuple(np.frombuffer(file.read(4 * tensor.dims[0]), "<f4").tolist())


def tensor_size(tensor: TensorInfo) -> int | None:
    """Return the size of a tensor's data in bytes; None for a type that the gguf package does not know."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType  # slow to import

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type)]
    except (ValueError, KeyError):
        return None
    return prod(tensor.dims) // block * size


# ----------------------------------------------------------------------------------------------


def _read_preamble(cursor: Cursor, path: Path) -> tuple[int, int, int]:
    """Return the version and the numbers of tensors and keys."""
    magic = bytes(cursor.data[: len(MAGIC)])
    if magic != MAGIC:
        raise GGUFError(f"{path}: no GGUF file: it begins with {magic!r}, not with {MAGIC!r}")
    _, version, n_tensors, n_keys = cursor.unpack(_PREAMBLE, "the first 24 bytes")
    if version and version & _LOW_HALF == 0:
        raise GGUFError(f"{path}: a big-endian GGUF file: convert the model again as little-endian")
    if version not in VERSIONS:
        raise GGUFError(f"{path}: GGUF version {version}, where 2 or 3 is needed: convert the model again")
    smallest = n_keys * _SMALLEST_KEY + n_tensors * _SMALLEST_TENSOR
    cursor.require(smallest, f"the header with {n_keys} keys and {n_tensors} tensors")
    return version, n_tensors, n_keys


def _read_key_value(cursor: Cursor, what: str) -> KeyValue:
    start = cursor.position
    key = cursor.text(what)
    what = f"the key {key!r}"
    type_ = cursor.type(what)
    value_start = cursor.position
    cursor.skip_value(type_, what)
    return KeyValue(key, type_, bytes(cursor.data[start : cursor.position]), value_start - start)


def _read_tensor_info(cursor: Cursor, what: str) -> TensorInfo:
    name = cursor.text(what)
    what = f"the tensor {name!r}"
    (n_dims,) = cursor.unpack(NUMBER, what)
    if n_dims > MAX_DIMENSIONS:
        raise GGUFError(
            f"{cursor.source}: {what} has {n_dims} dimensions, more than {MAX_DIMENSIONS}: {AGAIN}"
        )
    *dims, type_, offset = cursor.unpack(struct.Struct(f"<{n_dims}QIQ"), what)
    return TensorInfo(name, tuple(dims), type_, offset)


def _alignment(path: Path, entries: dict[str, KeyValue]) -> int:
    entry = entries.get("general.alignment")
    if entry is None:
        return DEFAULT_ALIGNMENT
    value = entry.value if entry.type == ValueType.UINT32 else 0
    if value <= 0 or value & (value - 1):
        raise GGUFError(f"{path}: general.alignment = {entry.value!r} is no power of two (UINT32): {AGAIN}")
    return value


def _check_extents(header: Header) -> None:
    """Raise GGUFError for a tensor that is not aligned, or that reaches beyond the end of the file."""
    needed = header.data_offset
    for tensor in header.tensors.values():
        if tensor.offset % header.alignment:
            raise GGUFError(
                f"{header.path}: the tensor {tensor.name!r} begins at {tensor.offset}, no multiple of the "
                f"alignment {header.alignment}: {AGAIN}"
            )
        needed = max(needed, header.data_offset + tensor.offset + (tensor_size(tensor) or 0))
    if needed > header.file_size:
        sizes = f"{header.file_size} bytes, {needed} needed"
        raise GGUFError(f"{header.path}: the file is cut short: {sizes}; download it again")
