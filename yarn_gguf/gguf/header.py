"""Read and assemble the header of a GGUF file, version 2 or 3: keys and tensor infos, never the weights.

The format is described in ggml's gguf.h. Every length in the file is checked before it is used, and
nothing is allocated that the file does not hold. A key keeps the bytes it had in the file, so that
whoever writes it again copies it verbatim.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from yarn_gguf.errors import GGUFError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
AGAIN = "the file is damaged: download it again, or convert it again"

_PREAMBLE = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of keys
PREAMBLE_SIZE = _PREAMBLE.size
_LENGTH = struct.Struct("<Q")
_TYPE = struct.Struct("<I")
_SMALLEST_KEY = 8 + 4 + 1  # bytes: an empty name, a type, one byte
_SMALLEST_TENSOR = 8 + 4 + 4 + 8  # bytes: an empty name, no dimension, a type, an offset


class ValueType(IntEnum):
    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# struct's codes, in the order of ValueType; a string and an array have none
_CODES = dict(zip(ValueType, [*"BbHhIif?", None, None, *"Qqd"], strict=True))


@dataclass(frozen=True)
class KeyValue:
    """A key with its value, as the bytes that the file holds: name, type and value."""

    key: str
    type: ValueType
    raw: bytes = field(repr=False)
    value_start: int = field(repr=False)  # within raw

    @property
    def value(self) -> Any:
        """The value: a number, a bool, a str, or a list of these. Decoded each time."""
        cursor = _Cursor(self.raw, self.key, self.value_start)
        if self.type != ValueType.ARRAY:
            return cursor.value(self.type, self.key)
        element, count = cursor.array_start(self.key)
        return [cursor.value(element, self.key) for _ in range(count)]


@dataclass(frozen=True)
class TensorInfo:
    """name, dims (innermost first), ggml type, and the offset in bytes within the tensor data."""

    name: str
    dims: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its tensor data. Offsets and sizes in bytes."""

    path: Path
    version: int
    entries: dict[str, KeyValue] = field(repr=False)
    tensors: dict[str, TensorInfo] = field(repr=False)
    tensor_section: bytes = field(repr=False)  # the tensor infos as the file holds them
    alignment: int
    data_offset: int
    file_size: int

    def get(self, key: str, type_: ValueType, default: Any = None) -> Any:
        """The value of `key`, or `default` if the file has none. Raises GGUFError for another type."""
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
    """Parse the header of the file at `path`. Raises GGUFError if it is no sound GGUF file, or OSError."""
    path = Path(path)
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size == 0:
            raise GGUFError(f"{path}: the file is empty: download it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse_header(data, path, size)


def parse_header(data: bytes | mmap.mmap, path: Path, file_size: int) -> Header:
    """Parse `data`, the beginning of a file of `file_size` bytes, called `path`. Raises GGUFError."""
    cursor = _Cursor(data, str(path))
    version, n_tensors, n_keys = _read_preamble(cursor, path)
    entries: dict[str, KeyValue] = {}
    for number in range(n_keys):
        entry = cursor.key_value(f"key {number + 1} of {n_keys}")
        if entry.key in entries:
            raise GGUFError(f"{path}: the key {entry.key!r} is there twice: {AGAIN}")
        entries[entry.key] = entry
    start = cursor.position
    tensors: dict[str, TensorInfo] = {}
    for number in range(n_tensors):
        tensor = cursor.tensor_info(f"tensor {number + 1} of {n_tensors}")
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
    """A key with a value: a number or a str, or (`type_` ARRAY) bytes or a tuple of floats (FLOAT64)."""
    name = key.encode()
    start = _LENGTH.pack(len(name)) + name + _TYPE.pack(type_)
    if type_ == ValueType.ARRAY:
        element = ValueType.UINT8 if isinstance(value, bytes) else ValueType.FLOAT64
        data = value if isinstance(value, bytes) else struct.pack(f"<{len(value)}d", *value)
        raw = _TYPE.pack(element) + _LENGTH.pack(len(value)) + data
    elif type_ == ValueType.STRING:
        text = value.encode()
        raw = _LENGTH.pack(len(text)) + text
    else:
        raw = struct.pack("<" + _CODES[type_], value)
    return KeyValue(key, type_, start + raw, len(start))


def assemble(header: Header, entries: Iterable[KeyValue]) -> bytes:
    """The bytes of a header with `entries` and the tensors of `header`, up to where padding begins."""
    raw = [entry.raw for entry in entries]
    preamble = _PREAMBLE.pack(MAGIC, header.version, len(header.tensors), len(raw))
    return b"".join([preamble, *raw, header.tensor_section])


def align(position: int, alignment: int) -> int:
    """The first multiple of `alignment` that is not below `position`."""
    return -(-position // alignment) * alignment


def read_floats(header: Header, name: str) -> tuple[float, ...] | None:
    """The float32 values of the tensor `name`, which the header's file holds; None if there is none."""
    tensor = header.tensors.get(name)
    if tensor is None:
        return None
    if tensor.type != 0 or len(tensor.dims) != 1:  # GGML_TYPE_F32
        raise GGUFError(f"{header.path}: the tensor {name} is no list of F32: convert the model again")
    with header.path.open("rb") as file:
        file.seek(header.data_offset + tensor.offset)
        return tuple(np.frombuffer(file.read(4 * tensor.dims[0]), "<f4").tolist())


def tensor_size(tensor: TensorInfo) -> int | None:
    """Bytes of a tensor's data; None for a type that the gguf package does not know."""
    from gguf.constants import GGML_QUANT_SIZES  # slow to import

    if tensor.type not in GGML_QUANT_SIZES:
        return None
    block, size = GGML_QUANT_SIZES[tensor.type]
    return prod(tensor.dims) // block * size


# ----------------------------------------------------------------------------------------------


def _read_preamble(cursor: _Cursor, path: Path) -> tuple[int, int, int]:
    magic = bytes(cursor.data[:4])
    if magic != MAGIC:
        raise GGUFError(f"{path}: no GGUF file: it begins with {magic!r}, not with {MAGIC!r}")
    _, version, n_tensors, n_keys = cursor.unpack(_PREAMBLE, "the first 24 bytes")
    if version and version & 0xFFFF == 0:
        raise GGUFError(f"{path}: a big-endian GGUF file: convert the model again as little-endian")
    if version not in VERSIONS:
        raise GGUFError(f"{path}: GGUF version {version}, where 2 or 3 is needed: convert the model again")
    smallest = n_keys * _SMALLEST_KEY + n_tensors * _SMALLEST_TENSOR
    cursor.require(smallest, f"the header with {n_keys} keys and {n_tensors} tensors")
    return version, n_tensors, n_keys


def _alignment(path: Path, entries: dict[str, KeyValue]) -> int:
    entry = entries.get("general.alignment")
    if entry is None:
        return DEFAULT_ALIGNMENT
    value = entry.value if entry.type == ValueType.UINT32 else 0
    if value <= 0 or value & (value - 1):
        raise GGUFError(f"{path}: general.alignment = {entry.value!r} is no power of two (UINT32): {AGAIN}")
    return value


def _check_extents(header: Header) -> None:
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


class _Cursor:
    """A position in `data`, which never leaves it."""

    def __init__(self, data: bytes | mmap.mmap, source: str, position: int = 0) -> None:
        self.data = data
        self.source = source
        self.position = position
        self.end = len(data)

    def require(self, count: int, what: str) -> None:
        if count > self.end - self.position:
            self._fail(what, self.position + count)

    def skip(self, count: int, what: str) -> None:
        self.require(count, what)
        self.position += count

    def take(self, count: int, what: str) -> bytes:
        self.require(count, what)
        start, self.position = self.position, self.position + count
        return self.data[start : self.position]

    def unpack(self, form: struct.Struct, what: str) -> tuple[Any, ...]:
        return form.unpack(self.take(form.size, what))

    def text(self, what: str, errors: str = "strict") -> str:
        (length,) = self.unpack(_LENGTH, what)
        try:
            return self.take(length, what).decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise GGUFError(f"{self.source}: the name of {what} is no UTF-8: {AGAIN}") from error

    def type(self, what: str) -> ValueType:
        (number,) = self.unpack(_TYPE, what)
        if number not in _CODES:
            raise GGUFError(f"{self.source}: {what} is of the unknown type {number}: {AGAIN}")
        return ValueType(number)

    def value(self, type_: ValueType, what: str) -> Any:
        if type_ == ValueType.STRING:
            return self.text(what, errors="replace")
        return self.unpack(struct.Struct("<" + _CODES[type_]), what)[0]

    def array_start(self, what: str) -> tuple[ValueType, int]:
        element = self.type(what)
        if element == ValueType.ARRAY:
            raise GGUFError(f"{self.source}: {what} is an array of arrays, which is not allowed: {AGAIN}")
        return element, self.unpack(_LENGTH, what)[0]

    def key_value(self, what: str) -> KeyValue:
        start = self.position
        key = self.text(what)
        what = f"the key {key!r}"
        type_ = self.type(what)
        value_start = self.position
        if type_ == ValueType.ARRAY:
            self._skip_values(*self.array_start(what), what)
        else:
            self._skip_values(type_, 1, what)
        return KeyValue(key, type_, bytes(self.data[start : self.position]), value_start - start)

    def tensor_info(self, what: str) -> TensorInfo:
        name = self.text(what)
        what = f"the tensor {name!r}"
        (n_dims,) = self.unpack(_TYPE, what)
        if n_dims > MAX_DIMENSIONS:
            raise GGUFError(
                f"{self.source}: {what} has {n_dims} dimensions, more than {MAX_DIMENSIONS}: {AGAIN}"
            )
        *dims, type_, offset = self.unpack(struct.Struct(f"<{n_dims}QIQ"), what)
        return TensorInfo(name, tuple(dims), type_, offset)

    def _skip_values(self, type_: ValueType, count: int, what: str) -> None:
        if type_ == ValueType.STRING:
            self._skip_strings(count, what)
        else:
            self.skip(struct.calcsize("<" + _CODES[type_]) * count, what)

    def _skip_strings(self, count: int, what: str) -> None:
        self.require(count * _LENGTH.size, what)
        position, data, length_at = self.position, self.data, _LENGTH.unpack_from
        try:  # a vocabulary has 100,000 and more: nothing but the addition in this loop
            for _ in range(count):
                position += 8 + length_at(data, position)[0]
        except (struct.error, OverflowError):
            self._fail(what, position)
        self.skip(position - self.position, what)

    def _fail(self, what: str, needed: int) -> None:
        raise GGUFError(
            f"{self.source}: {what} would need {needed} bytes or more, and there are {self.end}: "
            "the file is cut short or damaged; download it again"
        )
