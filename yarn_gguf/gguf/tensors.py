"""Give a GGUF file other tensors: some are left out, some are new."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from yarn_gguf.gguf.header import (
    LENGTH,
    NUMBER,
    Header,
    TensorInfo,
    align,
    read_floats,
    tensor_size,
)

_F32 = 0  # enum ggml_type

Piece = range | bytes  # of a new file's data: a range of the old file's bytes, or new bytes


def with_tensors(
    header: Header, tensors: Mapping[str, np.ndarray | None]
) -> tuple[Header, list[Piece]] | None:
    """Return the header with other tensors, and the data of all; None if the file has them already.

    tensors: float32, one dimension; None for a tensor to leave out. They follow the tensors that stay, whose
    bytes and order stay. data_offset and file_size of the new header are the old ones.
    """
    if not _differs(header, tensors):
        return None
    infos: list[TensorInfo] = []
    pieces: list[Piece] = []
    offset = 0
    kept = [each for each in _by_offset(header) if each[0].name not in tensors]
    for tensor, extent in kept:
        infos.append(replace(tensor, offset=offset))
        _add(pieces, extent)
        offset += len(extent)
    for name, values in tensors.items():
        if values is not None:
            infos.append(TensorInfo(name, values.shape, _F32, offset))
            data = values.astype("<f4").tobytes()
            data += bytes(-len(data) % header.alignment)
            pieces.append(data)
            offset += len(data)
    section = b"".join(map(_raw, infos))
    return replace(header, tensors={each.name: each for each in infos}, tensor_section=section), pieces


def _differs(header: Header, tensors: Mapping[str, np.ndarray | None]) -> bool:
    for name, values in tensors.items():
        found = read_floats(header, name)
        if (found is None) != (values is None):
            return True
        if values is not None and not np.array_equal(np.array(found, np.float32), values):
            return True
    return False


def _by_offset(header: Header) -> list[tuple[TensorInfo, range]]:
    """Return the tensors in the order of their data, each with the file's bytes up to the next one."""
    ordered = sorted(header.tensors.values(), key=lambda each: each.offset)
    starts = [header.data_offset + each.offset for each in ordered]
    size = tensor_size(ordered[-1]) if ordered else None
    end = header.file_size if size is None else align(starts[-1] + size, header.alignment)
    stops = [*starts[1:], end]
    return [(each, range(*extent)) for each, *extent in zip(ordered, starts, stops, strict=True)]


def _add(pieces: list[Piece], extent: range) -> None:
    """Add an extent, as one range with the one before it where they touch."""
    last = pieces[-1] if pieces else None
    if isinstance(last, range) and last.stop == extent.start:
        pieces[-1] = range(last.start, extent.stop)
    else:
        pieces.append(extent)


def _raw(tensor: TensorInfo) -> bytes:
    name = tensor.name.encode()
    dims = b"".join(map(LENGTH.pack, tensor.dims))
    count, type_ = NUMBER.pack(len(tensor.dims)), NUMBER.pack(tensor.type)
    return LENGTH.pack(len(name)) + name + count + dims + type_ + LENGTH.pack(tensor.offset)
