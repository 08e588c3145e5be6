"""Small GGUF files by the gguf package, the witness for our reading and writing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np

TOKENS = ["<s>", "</s>", "a", "é", "世界"]


def write_tiny(
    path: Path,
    arch: str = "llama",
    *,
    tensors: dict[str, np.ndarray] | None = None,
    data_kib: int = 1,
    alignment: int | None = None,
    **keys: Any,
) -> Path:
    """Write a model with heads of 64 dimensions and a context of 8192 tokens. It has too few tensors to run.

    keys: suffixes after `arch`, with "__" for ".". A float becomes FLOAT32, an int UINT32, a bool BOOL; None
    leaves a key out.
    """
    writer = gguf.GGUFWriter(path, arch)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_name("tiny")
    defaults = {
        "context_length": 8192,
        "embedding_length": 576,
        "attention__head_count": 9,
        "rope__freq_base": 100000.0,
    }
    for suffix, value in (defaults | keys).items():
        _add(writer, f"{arch}.{suffix.replace('__', '.')}", value)
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.5] * len(TOKENS))
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_int64("tiny.long", -(2**40))
    writer.add_float64("tiny.double", 1e300)
    generator = np.random.default_rng(0)
    weights = {
        "a.weight": generator.random((data_kib, 256), dtype=np.float32),
        "b.weight": generator.random((3, 5), dtype=np.float32).astype(np.float16),
    }
    for name, array in (weights | (tensors or {})).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def contents(path: Path) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """Return the keys that GGUFReader finds, and (type, shape, SHA-256 of the bytes) of each tensor."""
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {
        each.name: (each.tensor_type, tuple(each.shape), hashlib.sha256(each.data.tobytes()).hexdigest())
        for each in reader.tensors
    }
    return keys, tensors


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif value is not None:
        writer.add_uint32(key, value)
