"""Headers of GGUF files in memory, packed by the gguf package's writer."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from io import BufferedWriter, BytesIO
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType, TokenType
from gguf.gguf_writer import WriterState

TensorRow = tuple[str, tuple[int, ...], gguf.GGMLQuantizationType, int]  # name, shape, type, bytes


class Writer(gguf.GGUFWriter):
    """The gguf package's writer, which packs an array of strings or numbers at once.

    The package itself packs a vocabulary's hundreds of thousands of values one by one.
    """

    def _pack_val(
        self, val: Any, vtype: GGUFValueType, add_vtype: bool, sub_type: GGUFValueType | None = None
    ) -> bytes:
        kinds = set(map(type, val)) if vtype == GGUFValueType.ARRAY and sub_type is None else ()
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind not in _AT_ONCE:
            return super()._pack_val(val, vtype, add_vtype, sub_type)
        type_, pack = _AT_ONCE[kind]
        return struct.pack("<IIQ", vtype, type_, len(val)) + pack(val)


def new_writer(arch: str, tensors: Iterable[TensorRow], split_max_size: int = 0) -> gguf.GGUFWriter:
    """Return a writer that knows the tensors and the file of each.

    split_max_size: bytes of tensors in one file; 0 for a single file.
    """
    writer = Writer(None, arch, split_max_size=split_max_size)
    for name, shape, type_, size in tensors:
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=type_)
    return writer


def headers(writer: gguf.GGUFWriter) -> list[bytes]:
    """Return the bytes before the tensor data of each of the writer's files, padded to the alignment."""
    streams = [BytesIO() for _ in writer.tensors]
    writer.fout, writer.state = [BufferedWriter(stream) for stream in streams], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for file in writer.fout:
        writer.write_padding(file, file.tell())
        file.flush()
    return [stream.getvalue() for stream in streams]


# ----------------------------------------------------------------------------------------------


def _strings(texts: list[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join([part for each in encoded for part in (len(each).to_bytes(8, "little"), each)])


# tokens and merges, scores, types
_AT_ONCE = {
    str: (GGUFValueType.STRING, _strings),
    float: (GGUFValueType.FLOAT32, lambda values: struct.pack(f"<{len(values)}f", *values)),
    TokenType: (GGUFValueType.INT32, lambda values: struct.pack(f"<{len(values)}i", *values)),
}
