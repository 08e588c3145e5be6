"""The beginning of GGUF files in memory, by the gguf package's writer."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from io import BytesIO
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType, TokenType
from gguf.gguf_writer import WriterState

TensorRow = tuple[str, tuple[int, ...], gguf.GGMLQuantizationType, int]  # name, shape, type, bytes


class Writer(gguf.GGUFWriter):
    """The gguf package's, which packs a vocabulary's hundreds of thousands of values one by one."""

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
    """A writer that knows the tensors, and which file each is in. split_max_size: bytes a file; 0 for one."""
    writer = Writer(None, arch, split_max_size=split_max_size)
    for name, shape, type_, size in tensors:
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=type_)
    return writer


def headers(writer: gguf.GGUFWriter) -> list[bytes]:
    """Of each of the writer's files what comes before the tensor data, padded to its alignment."""
    writer.fout, writer.state = [BytesIO() for _ in writer.tensors], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for file in writer.fout:
        writer.write_padding(file, file.tell())
    return [file.getvalue() for file in writer.fout]


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
