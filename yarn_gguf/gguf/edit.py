"""Change keys of a GGUF file. At any moment a reader finds the old file or the new one, whole.

The changed keys move to the end of the key section, and spare bytes (the key SPARE) follow them. The first
change writes a copy beside the old file and renames it. A later change that fits in the spare bytes is a
single write within one page of the header.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping, Sequence
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
from yarn_gguf.gguf.tensors import Piece, with_tensors

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
    header: Header,
    changed: Sequence[KeyValue],
    owned: Collection[str],
    output: Path | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
) -> Written:
    """Replace all keys named in `owned` by the keys `changed`, and some tensors.

    All other keys and tensors stay the same, byte for byte.
    output: the file to write. None: the header's own file.
    tensors: see with_tensors. If the file does not have them already, it is copied.
    Raises GGUFError. The file is then unchanged, and no temporary file is left beside it.
    """
    target = header.path.resolve() if output is None else output
    inputs = [] if output is None else [header.path]
    if (other := with_tensors(header, tensors or {})) is not None:
        new, pieces = other
        counts = _split_count(header, new)
        changed, owned = [*changed, *counts], {*owned, *(entry.key for entry in counts)}
        _require_writable(header, output)
        return _copy(new, _roomy_layout(new, changed, owned), target, pieces, inputs)
    everything: list[Piece] = [range(header.data_offset, header.file_size)]
    if output is not None:
        return _copy(header, _roomy_layout(header, changed, owned), target, everything, inputs)
    if {key: entry.raw for key, entry in header.entries.items() if key in owned} == _bytes_of(changed):
        return Written(header.path, "unchanged", 0)
    _require_writable(header, output)
    same_size = _same_size_layout(header, changed, owned)
    if same_size is not None and (written := _overwrite_page(header, same_size)):
        return written
    return _copy(header, _roomy_layout(header, changed, owned), target, everything)


# ----------------------------------------------------------------------------------------------


def _require_writable(header: Header, output: Path | None) -> None:
    if output is None and not os.access(header.path, os.W_OK):
        raise GGUFError(f"{header.path}: the file is read-only: write to another with -o")


def _split_count(old: Header, new: Header) -> list[KeyValue]:
    """Return the key that counts the tensors of a split model, for the new tensors; none for another file."""
    entry = old.entries.get("split.tensors.count")
    if entry is None:
        return []
    return [key_value(entry.key, entry.type, entry.value + len(new.tensors) - len(old.tensors))]


def _bytes_of(entries: Sequence[KeyValue]) -> dict[str, bytes]:
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


def _copy(
    header: Header, new: bytes, target: Path, pieces: Sequence[Piece], inputs: Sequence[Path] = ()
) -> Written:
    """Write a new file with the header `new` and the data `pieces`, and rename it to `target`.

    header: its tensors are those of the new file; its path is that of the old one. inputs: files that
    `target` must not be.
    """
    size = len(new) + sum(map(len, pieces))
    _verify(header, new, size)
    with replacing(target, size, like=header.path, inputs=inputs) as file:
        with header.path.open("rb") as source:
            file.write(new)
            for piece in pieces:
                if isinstance(piece, range):
                    _copy_range(source, file, piece)
                else:
                    file.write(piece)
        if file.tell() != size or header.path.stat().st_size != header.file_size:
            raise GGUFError(f"{header.path}: the file changed while it was copied: try again")
    return Written(target, "copied", size)


def _copy_range(source: IO[bytes], target: IO[bytes], extent: range) -> None:
    """Append bytes of `source`. The kernel copies, and shares whole pages if the filesystem can."""
    source.seek(extent.start)
    target.write(source.read(min(-extent.start % PAGE, len(extent))))  # both at the start of a page
    target.flush()
    offset = target.tell() - source.tell()
    position = source.tell()
    try:
        descriptors = source.fileno(), target.fileno()
        while position < extent.stop:
            size = min(_KERNEL_CHUNK, extent.stop - position)
            count = os.copy_file_range(*descriptors, size, position, position + offset)
            if count == 0:
                break
            position += count
    except AttributeError:
        pass  # a system without this call
    except OSError as error:
        if error.errno not in _CANNOT_CLONE:
            raise
    source.seek(position)
    target.seek(position + offset)
    while data := source.read(min(_COPY_CHUNK, extent.stop - position)):
        target.write(data)
        position += len(data)
    target.flush()
