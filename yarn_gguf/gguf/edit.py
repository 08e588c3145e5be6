"""Change keys of a GGUF file so that whoever looks, at any moment, finds the old file or the new one.

The changed keys move to the end of the key section, where spare bytes (the key SPARE) follow them.
The first change copies the file beside the old one and renames it; as long as later ones fit in the
spare bytes, they are a single write within one page of the header.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from yarn_gguf.disk.replace import clear_errors, replacing
from yarn_gguf.errors import GGUFError
from yarn_gguf.gguf.header import (
    PREAMBLE_SIZE,
    Header,
    KeyValue,
    ValueType,
    align,
    assemble,
    key_value,
    parse_header,
)

SPARE = "yarn_gguf.spare"  # bytes that a later change may use
PAD = "yarn_gguf.pad"  # puts the changed keys into one page
PAGE = 4096  # bytes: the unit that a kernel writes whole, and that filesystems can share between files
MIN_SPARE = 256

_CHUNK = 64 << 20
_CANNOT_CLONE = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


@dataclass(frozen=True)
class Written:
    """What was written. how: "unchanged", "in place" (within one page) or "copied". size: bytes written."""

    path: Path
    how: str
    size: int


def change_keys(
    header: Header, changed: Sequence[KeyValue], owned: Collection[str], output: Path | None = None
) -> Written:
    """Replace all keys named in `owned` by `changed`, in the file itself or on the way to `output`.

    All other keys, the tensors and what follows them stay as they are, byte for byte. Raises
    GGUFError, after which the file is as it was, with nothing left beside it.
    """
    if output is not None:
        return _copy(header, _roomy_layout(header, changed, owned), output)
    if {key: entry.raw for key, entry in header.entries.items() if key in owned} == _raw(changed):
        return Written(header.path, "unchanged", 0)
    if not os.access(header.path, os.W_OK):
        raise GGUFError(f"{header.path}: the file is read-only: write to another with -o")
    new = _same_size_layout(header, changed, owned)
    if new is not None and (written := _overwrite_page(header, new)):
        return written
    return _copy(header, _roomy_layout(header, changed, owned), header.path.resolve())


# ----------------------------------------------------------------------------------------------


def _raw(entries: Sequence[KeyValue]) -> dict[str, bytes]:
    return {entry.key: entry.raw for entry in entries}


def _zeros(key: str, count: int) -> KeyValue:
    return key_value(key, ValueType.ARRAY, bytes(count))


def _same_size_layout(header: Header, changed: Sequence[KeyValue], owned: Collection[str]) -> bytes | None:
    """The new header, as long as the old one; None if the spare bytes do not suffice."""
    kept = [entry for key, entry in header.entries.items() if key not in owned and key != SPARE]
    spare = header.data_offset - len(assemble(header, [*kept, *changed, _zeros(SPARE, 0)]))
    return assemble(header, [*kept, *changed, _zeros(SPARE, spare)]) if spare > 0 else None


def _roomy_layout(header: Header, changed: Sequence[KeyValue], owned: Collection[str]) -> bytes:
    """The new header, with at least MIN_SPARE spare bytes, moving the data by a multiple of PAGE."""
    kept = [entry for key, entry in header.entries.items() if key not in owned and key not in (SPARE, PAD)]
    kept += _padding_before(changed, sum(len(entry.raw) for entry in kept))
    needed = len(assemble(header, [*kept, *changed, _zeros(SPARE, MIN_SPARE)]))
    step = max(PAGE, header.alignment)
    data_offset = align(needed - header.data_offset, step) + header.data_offset
    return assemble(header, [*kept, *changed, _zeros(SPARE, MIN_SPARE + data_offset - needed)])


def _padding_before(changed: Sequence[KeyValue], kept_size: int) -> list[KeyValue]:
    """A key that puts `changed`, with room to grow, into one page if they would straddle two."""
    start = PREAMBLE_SIZE + kept_size
    end = start + sum(len(entry.raw) for entry in changed) + len(_zeros(SPARE, MIN_SPARE).raw)
    if start // PAGE == (end - 1) // PAGE:
        return []
    smallest = start + len(_zeros(PAD, 1).raw)
    return [_zeros(PAD, 1 + align(smallest, PAGE) - smallest)]


def _verify(header: Header, new: bytes, file_size: int) -> None:
    """Read the new header back before it is written: what is not ours must have survived."""
    again = parse_header(new, header.path, file_size)
    if again.tensor_section != header.tensor_section or again.data_offset != len(new):
        raise GGUFError(f"{header.path}: the new header does not read back: please report this")


def _overwrite_page(header: Header, new: bytes) -> Written | None:
    """Write what differs, if that lies within one page: then it is written whole or not at all."""
    with clear_errors(header.path, len(new)), header.path.open("r+b", buffering=0) as file:
        old = file.read(len(new))
        if not old.startswith(assemble(header, header.entries.values())):
            raise GGUFError(f"{header.path}: the file changed since it was read: try again")
        differs = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8))
        first, end = int(differs[0]), int(differs[-1]) + 1
        if first // PAGE != (end - 1) // PAGE:
            return None
        _verify(header, new, header.file_size)
        file.seek(first)
        file.write(new[first:end])
        os.fsync(file.fileno())
    return Written(header.path, "in place", end - first)


def _copy(header: Header, new: bytes, target: Path) -> Written:
    """A file beside `target`, made whole, then renamed to it."""
    size = len(new) + header.file_size - header.data_offset
    _verify(header, new, size)
    with replacing(target, size, like=header.path) as file:
        with header.path.open("rb") as source:
            file.write(new)
            _copy_data(source, file, header.data_offset)
        if file.tell() != size:
            raise GGUFError(f"{header.path}: the file changed while it was copied: try again")
    return Written(target, "copied", size)


def _copy_data(source: BinaryIO, target: BinaryIO, start: int) -> None:
    """Append `source` from `start` on. The kernel copies, and shares whole pages where it can."""
    source.seek(start)
    target.write(source.read(-start % PAGE))  # from here on both sides are at a page's beginning
    target.flush()
    offset = target.tell() - source.tell()
    position = source.tell()
    try:
        descriptors = source.fileno(), target.fileno()
        while count := os.copy_file_range(*descriptors, _CHUNK, position, position + offset):
            position += count
    except AttributeError:
        pass  # a system without this call
    except OSError as error:
        if error.errno not in _CANNOT_CLONE:
            raise
    source.seek(position)
    target.seek(position + offset)
    shutil.copyfileobj(source, target, 1 << 20)
    target.flush()
