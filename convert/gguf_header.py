"""The beginning of GGUF files in memory, by the gguf package's writer."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO

import gguf
import numpy as np
from gguf.gguf_writer import WriterState

TensorRow = tuple[str, tuple[int, ...], gguf.GGMLQuantizationType, int]  # name, shape, type, bytes


def new_writer(arch: str, tensors: Iterable[TensorRow], split_max_size: int = 0) -> gguf.GGUFWriter:
    """A writer that knows the tensors, and which file each is in. split_max_size: bytes a file; 0 for one."""
    writer = gguf.GGUFWriter(None, arch, split_max_size=split_max_size)
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
