"""Change keys of a GGUF file. At any moment a reader finds the old file or the new one, whole.

The changed keys move to the end of the key section, and spare bytes (the key SPARE) follow them. The first
change writes a copy beside the old file and renames it. A later change that fits in the spare bytes is a
single write within one page of the header.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from yarn_gguf.disk.replace import explained_errors, replacing
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

SPARE = "yarn_gguf.spare"  # an array of bytes that a later change may use
PAD = "yarn_gguf.pad"  # an array that moves the changed keys into one page
PAGE = 4096  # bytes; a kernel writes a page whole, and filesystems can share it between files
MIN_SPARE = 256  # bytes

_KERNEL_CHUNK = 64 << 20  # bytes; of one copy_file_range
_COPY_CHUNK = 1 << 20  # bytes
_CANNOT_CLONE = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


@dataclass(frozen=True)
class Written:
    """The outcome of a change.

    path: the file with the keys.
    how: "unchanged", "in place" (a write within one page) or "copied" (a new file, renamed to `path`).
    size: bytes written.
    """

    path: Path
    how: str
    size: int


def change_keys(
    header: Header, changed: Sequence[KeyValue], owned: Collection[str], output: Path | None = None
) -> Written:
    """Replace all keys named in `owned` by the keys `changed`.

    All other keys, the tensors and the data after them stay the same, byte for byte.
    output: the file to write. None: the header's own file.
    Raises GGUFError. The file is then unchanged, and no temporary file is left beside it.
    """
    if output is not None:
        return _copy(header, _roomy_layout(header, changed, owned), output, [header.path])
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
    """Return the new header, of the old one's length; None if the spare bytes do not suffice."""
    kept = [entry for key, entry in header.entries.items() if key not in owned and key != SPARE]
    spare = header.data_offset - len(assemble(header, [*kept, *changed, _zeros(SPARE, 0)]))
    return assemble(header, [*kept, *changed, _zeros(SPARE, spare)]) if spare > 0 else None


def _roomy_layout(header: Header, changed: Sequence[KeyValue], owned: Collection[str]) -> bytes:
    """Return the new header with at least MIN_SPARE spare bytes. It moves the data by a multiple of PAGE."""
    kept = [entry for key, entry in header.entries.items() if key not in owned and key not in (SPARE, PAD)]
    kept += _padding_before(changed, sum(len(entry.raw) for entry in kept))
    needed = len(assemble(header, [*kept, *changed, _zeros(SPARE, MIN_SPARE)]))
    step = max(PAGE, header.alignment)
    data_offset = align(needed - header.data_offset, step) + header.data_offset
    return assemble(header, [*kept, *changed, _zeros(SPARE, MIN_SPARE + data_offset - needed)])


def _padding_before(changed: Sequence[KeyValue], kept_size: int) -> list[KeyValue]:
    """Return a key that moves `changed`, with room to grow, into one page; none if they are in one anyway.

    kept_size: bytes of the keys before them.
    """
    start = PREAMBLE_SIZE + kept_size
    end = start + sum(len(entry.raw) for entry in changed) + len(_zeros(SPARE, MIN_SPARE).raw)
    if start // PAGE == (end - 1) // PAGE:
        return []
    smallest = start + len(_zeros(PAD, 1).raw)
    return [_zeros(PAD, 1 + align(smallest, PAGE) - smallest)]


def _verify(header: Header, new: bytes, file_size: int) -> None:
    """Parse the new header before it is written. Raises GGUFError if tensor infos or data offset differ."""
    again = parse_header(new, header.path, file_size)
    if again.tensor_section != header.tensor_section or again.data_offset != len(new):
        raise GGUFError(f"{header.path}: the new header does not read back: please report this")


def _overwrite_page(header: Header, new: bytes) -> Written | None:
    """Write the bytes that differ, if one page holds them: then the kernel writes all of them or none.

    Return None, with nothing written, if they are in several pages. Raises GGUFError.
    """
    with explained_errors(header.path, len(new)), header.path.open("r+b", buffering=0) as file:
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


def _copy(header: Header, new: bytes, target: Path, inputs: Sequence[Path] = ()) -> Written:
    """Write a new file with the header `new` and the old data to `target`, which is none of `inputs`."""
    size = len(new) + header.file_size - header.data_offset
    _verify(header, new, size)
    with replacing(target, size, like=header.path, inputs=inputs) as file:
        with header.path.open("rb") as source:
            file.write(new)
            _copy_data(source, file, header.data_offset)
        if file.tell() != size:
            raise GGUFError(f"{header.path}: the file changed while it was copied: try again")
    return Written(target, "copied", size)


def _copy_data(source: IO[bytes], target: IO[bytes], start: int) -> None:
    """Append `source` from `start` on. The kernel copies, and shares whole pages if the filesystem can."""
    source.seek(start)
    target.write(source.read(-start % PAGE))  # now both files are at the start of a page
    target.flush()
    offset = target.tell() - source.tell()
    position = source.tell()
    try:
        descriptors = source.fileno(), target.fileno()
        while count := os.copy_file_range(*descriptors, _KERNEL_CHUNK, position, position + offset):
            position += count
    except AttributeError:
        pass  # a system without this call
    except OSError as error:
        if error.errno not in _CANNOT_CLONE:
            raise
    source.seek(position)
    target.seek(position + offset)
    shutil.copyfileobj(source, target, _COPY_CHUNK)
    target.flush()
