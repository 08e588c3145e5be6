"""Write models of any size whose weights are a hole in the file, for code that reads headers alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

Shapes = dict[str, tuple[int, ...]]  # in ggml's order: the row first


def write_sparse(path: Path, arch: str, keys: dict[str, Any], shapes: Shapes, type_: Type = Type.F16) -> Path:
    """Write a model without tokenizer. keys: suffixes after `arch`. type_: of matrices; vectors are f32."""
    writer = gguf.GGUFWriter(path, arch)
    for suffix, value in keys.items():
        add = {float: writer.add_float32, list: writer.add_array}.get(type(value), writer.add_uint32)
        add(f"{arch}.{suffix}", value)
    writer.add_tokenizer_model("none")
    size = 0
    for name, shape in shapes.items():
        kind = Type.F32 if len(shape) == 1 or "conv" in name or name.endswith(("ssm_a", "ssm_d")) else type_
        block, width = gguf.GGML_QUANT_SIZES[kind]
        size_of = int(np.prod(shape)) // block * width
        rows = (*shape[:0:-1], shape[0] // block * width)
        writer.add_tensor_info(name, rows, np.dtype(np.uint8), size_of, raw_dtype=kind)
        size += -(-size_of // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + 32 + size)
    return path


def llama_8b(path: Path, type_: Type = Type.Q4_0, **keys: Any) -> Path:
    """Write a model with the shapes of Llama 3 8B. keys: more keys, with "__" for "."."""
    width, kv, hidden, vocabulary, layers = 4096, 1024, 14336, 128256, 32
    shapes = {"token_embd.weight": (width, vocabulary), "output.weight": (width, vocabulary)}
    shapes["output_norm.weight"] = (width,)
    for index in range(layers):
        shapes |= _named(index, {"attn_norm": (width,), "ffn_norm": (width,), **_attention(width, kv)})
        shapes |= _named(index, _feed_forward(width, hidden))
    values = {
        "context_length": 8192,
        "embedding_length": width,
        "feed_forward_length": hidden,
        "block_count": layers,
        "attention.head_count": 32,
        "attention.head_count_kv": 8,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 500000.0,
        "vocab_size": vocabulary,
    }
    return write_sparse(path, "llama", values | _dotted(keys), shapes, type_)


def lfm2(path: Path, layers: int = 4, width: int = 512) -> Path:
    """Write a hybrid: every other layer has attention, the others keep two columns of a convolution."""
    kv, hidden, vocabulary = 128, 1024, 256
    shapes = {"token_embd.weight": (width, vocabulary), "token_embd_norm.weight": (width,)}
    for index in range(layers):
        shapes |= _named(index, {"attn_norm": (width,), "ffn_norm": (width,), **_feed_forward(width, hidden)})
        if index % 2:
            shapes |= _named(index, {"attn_q_norm": (64,), "attn_k_norm": (64,), **_attention(width, kv)})
        else:
            shapes |= _named(index, {"shortconv.conv": (3, width), "shortconv.in_proj": (width, 3 * width)})
            shapes |= _named(index, {"shortconv.out_proj": (width, width)})
    values = {
        "context_length": 32768,
        "embedding_length": width,
        "feed_forward_length": hidden,
        "block_count": layers,
        "attention.head_count": width // 64,
        "attention.head_count_kv": [kv // 64 * (index % 2) for index in range(layers)],
        "attention.layer_norm_rms_epsilon": 1e-5,
        "shortconv.l_cache": 3,
        "vocab_size": vocabulary,
    }
    return write_sparse(path, "lfm2", values, shapes)


def mamba(path: Path, layers: int = 4, width: int = 512) -> Path:
    """Write a recurrent model: states, and no rotary embedding."""
    inner, state, rank, vocabulary = 2 * width, 16, 32, 256
    shapes = {"token_embd.weight": (width, vocabulary), "output_norm.weight": (width,)}
    for index in range(layers):
        shapes |= _named(
            index, {"attn_norm": (width,), "ssm_in": (width, 2 * inner), "ssm_conv1d": (4, inner)}
        )
        shapes |= _named(index, {"ssm_x": (inner, rank + 2 * state), "ssm_dt": (rank, inner)})
        shapes |= _named(index, {"ssm_out": (inner, width)})
        shapes |= {f"blk.{index}.ssm_conv1d.bias": (inner,), f"blk.{index}.ssm_dt.bias": (inner,)}
        shapes |= {f"blk.{index}.ssm_a": (state, inner), f"blk.{index}.ssm_d": (inner,)}
    values = {
        "context_length": 1 << 20,
        "embedding_length": width,
        "feed_forward_length": 0,
        "block_count": layers,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": rank,
        "vocab_size": vocabulary,
    }
    return write_sparse(path, "mamba", values, shapes)


def _attention(width: int, kv: int) -> Shapes:
    square, narrow = (width, width), (width, kv)
    return {"attn_q": square, "attn_k": narrow, "attn_v": narrow, "attn_output": square}


def _feed_forward(width: int, hidden: int) -> Shapes:
    return {"ffn_gate": (width, hidden), "ffn_up": (width, hidden), "ffn_down": (hidden, width)}


def _named(index: int, shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    return {f"blk.{index}.{name}.weight": shape for name, shape in shapes.items()}


def _dotted(keys: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in keys.items()}
