"""Read the primitive values of the GGUF format, one after the other.

Every length in the data is checked before it is used, and nothing is allocated that the data does not hold.
"""

from __future__ import annotations

import mmap
import struct
from enum import IntEnum
from typing import Any, NoReturn

from yarn_gguf.errors import GGUFError

AGAIN = "the file is damaged: download it again, or convert it again"

LENGTH = struct.Struct("<Q")
NUMBER = struct.Struct("<I")  # a type, or a count of dimensions


class ValueType(IntEnum):
    """The type of a key's value (enum gguf_type in gguf.h)."""

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


NUMBER_FORMATS = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<?"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}


class Cursor:
    """A position in `data` that never leaves it.

    source: the file, for errors. Each method takes `what` is being read, for errors too, and moves the
    position behind it. All raise GGUFError for damaged data.
    """

    def __init__(self, data: bytes | mmap.mmap, source: str, position: int = 0) -> None:
        self.data = data
        self.source = source
        self.position = position
        self.end = len(data)

    def require(self, count: int, what: str) -> None:
        """Raise GGUFError unless `count` bytes are left. The position stays."""
        if count > self.end - self.position:
            self._fail(what, self.position + count)

    def skip(self, count: int, what: str) -> None:
        """Skip `count` bytes."""
        self.require(count, what)
        self.position += count

    def take(self, count: int, what: str) -> bytes:
        """Return the next `count` bytes."""
        self.require(count, what)
        start, self.position = self.position, self.position + count
        return self.data[start : self.position]

    def unpack(self, form: struct.Struct, what: str) -> tuple[Any, ...]:
        """Return the next values, in the format `form`."""
        return form.unpack(self.take(form.size, what))

    def text(self, what: str, errors: str = "strict") -> str:
        """Return the next string. errors: as of bytes.decode; "strict" raises GGUFError."""
        (length,) = self.unpack(LENGTH, what)
        try:
            return self.take(length, what).decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise GGUFError(f"{self.source}: the name of {what} is no UTF-8: {AGAIN}") from error

    def type(self, what: str) -> ValueType:
        """Return the next value type."""
        (number,) = self.unpack(NUMBER, what)
        try:
            return ValueType(number)
        except ValueError:
            raise GGUFError(f"{self.source}: {what} is of the unknown type {number}: {AGAIN}") from None

    def value(self, type_: ValueType, what: str) -> Any:
        """Return the next value: a number, a bool, a str, or a list of these."""
        if type_ != ValueType.ARRAY:
            return self._single(type_, what)
        element, count = self._array_start(what)
        return [self._single(element, what) for _ in range(count)]

    def skip_value(self, type_: ValueType, what: str) -> None:
        """Skip the next value."""
        count = 1
        if type_ == ValueType.ARRAY:
            type_, count = self._array_start(what)
        if type_ == ValueType.STRING:
            self._skip_strings(count, what)
        else:
            self.skip(NUMBER_FORMATS[type_].size * count, what)

    def _single(self, type_: ValueType, what: str) -> Any:
        if type_ == ValueType.STRING:
            return self.text(what, errors="replace")
        return self.unpack(NUMBER_FORMATS[type_], what)[0]

    def _array_start(self, what: str) -> tuple[ValueType, int]:
        """Return the type of an array's elements, and their number."""
        element = self.type(what)
        if element == ValueType.ARRAY:
            raise GGUFError(f"{self.source}: {what} is an array of arrays, which is not allowed: {AGAIN}")
        return element, self.unpack(LENGTH, what)[0]

    def _skip_strings(self, count: int, what: str) -> None:
        self.require(count * LENGTH.size, what)
        position, data, length_at, length_size = self.position, self.data, LENGTH.unpack_from, LENGTH.size
        try:  # a vocabulary has 100,000 strings and more, so this loop does the least that is possible
            for _ in range(count):
                position += length_size + length_at(data, position)[0]
        except (struct.error, OverflowError):
            self._fail(what, position)
        self.skip(position - self.position, what)

    def _fail(self, what: str, needed: int) -> NoReturn:
        raise GGUFError(
            f"{self.source}: {what} would need {needed} bytes or more, and there are {self.end}: "
            "the file is cut short or damaged; download it again"
        )
