"""Tiny models of several architectures with random weights. Each can have the vocabulary of a real file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

WIDTH, HIDDEN, HEAD, CONTEXT, VOCABULARY = 64, 96, 32, 8192, 256
WINDOW = 32  # tokens; gemma2's sliding window

Shapes = dict[str, tuple[int, ...]]  # as in numpy

_EPSILON = {"attention.layer_norm_rms_epsilon": 1e-5}
_HEADS = {"attention.head_count": 2, "attention.head_count_kv": 1}


def llama(
    path: Path,
    vocabulary: Path | None = None,
    layers: int = 2,
    tensors: dict[str, np.ndarray] | None = None,
    **keys: Any,
) -> Path:
    """Write a Llama: attention with RoPE in every layer.

    tensors: further ones. keys: further ones, by suffix after "llama." with "__" for ".".
    """
    shapes: Shapes = {"output_norm.weight": (WIDTH,)}
    for i in range(layers):
        shapes |= _layer(i, {**_attention(), **_feed_forward()})
    own = {name.replace("__", "."): value for name, value in keys.items()}
    keys = {"block_count": layers, "rope.freq_base": 10000.0, **_HEADS, **_EPSILON} | own
    return write_random(path, "llama", keys, shapes, vocabulary, tensors)


def gemma2(path: Path, vocabulary: Path | None = None) -> Path:
    """Write a Gemma 2: every other layer has a sliding window."""
    shapes: Shapes = {"output_norm.weight": (WIDTH,)}
    for i in range(2):
        norms = {"post_attention_norm": (WIDTH,), "post_ffw_norm": (WIDTH,)}
        shapes |= _layer(i, {**_attention(), **_feed_forward(), **norms})
    own = {"attention.sliding_window": WINDOW, "attention.key_length": HEAD, "attention.value_length": HEAD}
    return write_random(path, "gemma2", {"block_count": 2, **_HEADS, **_EPSILON, **own}, shapes, vocabulary)


def lfm2(path: Path, vocabulary: Path | None = None) -> Path:
    """Write a hybrid: recurrent short convolutions around one layer of attention."""
    shapes: Shapes = {"token_embd_norm.weight": (WIDTH,)}
    for i in range(3):
        if i == 1:
            mixing = {**_attention(), "attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,)}
        else:
            mixing = {"attn_norm": (WIDTH,), "shortconv.conv": (WIDTH, 3)}
            mixing |= {"shortconv.in_proj": (3 * WIDTH, WIDTH), "shortconv.out_proj": (WIDTH, WIDTH)}
        shapes |= _layer(i, {**mixing, **_feed_forward()})
    keys = {
        "block_count": 3,
        "attention.head_count": 2,
        "attention.head_count_kv": [0, 1, 0],
        "rope.freq_base": 10000.0,
        "shortconv.l_cache": 3,
    }
    return write_random(path, "lfm2", keys | _EPSILON, shapes, vocabulary)


def mamba(path: Path, vocabulary: Path | None = None) -> Path:
    """Write a Mamba: recurrent states, no attention."""
    inner, state, rank = 2 * WIDTH, 16, 4
    shapes: Shapes = {"output_norm.weight": (WIDTH,)}
    for i in range(2):
        own = {"attn_norm": (WIDTH,), "ssm_in": (2 * inner, WIDTH), "ssm_conv1d": (inner, 4)}
        own |= {"ssm_x": (rank + 2 * state, inner), "ssm_dt": (inner, rank), "ssm_out": (WIDTH, inner)}
        shapes |= _layer(i, own)
        shapes |= {f"blk.{i}.ssm_conv1d.bias": (inner,), f"blk.{i}.ssm_dt.bias": (inner,)}
        shapes |= {f"blk.{i}.ssm_a": (inner, state), f"blk.{i}.ssm_d": (inner,)}
    keys = {
        "block_count": 2,
        "attention.head_count": 0,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": rank,
    }
    return write_random(path, "mamba", keys | _EPSILON, shapes, vocabulary)


def bert(path: Path, vocabulary: Path | None = None) -> Path:
    """Write an encoder for embeddings. Its attention is not causal."""
    norms = ("attn_output_norm", "layer_output_norm")
    matrices = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH))
    matrices |= {"ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN)}
    shapes: Shapes = {"position_embd.weight": (CONTEXT, WIDTH), "token_types.weight": (2, WIDTH)}
    shapes |= {"token_embd_norm.weight": (WIDTH,), "token_embd_norm.bias": (WIDTH,)}
    for i in range(2):
        shapes |= _layer(i, {**matrices, **dict.fromkeys(norms, (WIDTH,))})
        shapes |= {f"blk.{i}.{name}.bias": (shape[0],) for name, shape in matrices.items()}
        shapes |= {f"blk.{i}.{name}.bias": (WIDTH,) for name in norms}
    keys = {"block_count": 2, "attention.head_count": 2, "attention.layer_norm_epsilon": 1e-5}
    keys |= {"attention.causal": False, "pooling_type": 1}
    return write_random(path, "bert", keys, shapes, vocabulary)


def adapter(path: Path, arch: str = "llama", tensor: str = "blk.0.attn_q.weight") -> Path:
    """Write a LoRA adapter for the model's square matrix `tensor`."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    generator = np.random.default_rng(3)
    for side, shape in {"a": (4, WIDTH), "b": (WIDTH, 4)}.items():
        writer.add_tensor(f"{tensor}.lora_{side}", generator.normal(0, 0.3, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_random(
    path: Path,
    arch: str,
    keys: dict[str, Any],
    shapes: Shapes,
    vocabulary: Path | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a model with these keys and tensors of random weights.

    keys: by suffix after `arch`. vocabulary: a GGUF file whose tokenizer is copied. tensors: further ones.
    """
    writer = gguf.GGUFWriter(path, arch)
    count = _add_vocabulary(writer, vocabulary)
    writer.add_token_type_count(2)  # an encoder needs it
    common = {"context_length": CONTEXT, "embedding_length": WIDTH, "feed_forward_length": HIDDEN}
    adders = {
        bool: writer.add_bool,
        float: writer.add_float32,
        list: writer.add_array,
        str: writer.add_string,
    }
    for suffix, value in (common | {"vocab_size": count} | keys).items():
        adders.get(type(value), writer.add_uint32)(f"{arch}.{suffix}", value)
    generator = np.random.default_rng(0)
    for name, shape in ({"token_embd.weight": (count, WIDTH)} | shapes).items():
        values = generator.normal(0, 0.15, shape)
        if "norm.weight" in name:
            values += 1
        if name.endswith("ssm_a"):
            values = -np.abs(values)  # the states decay
        writer.add_tensor(name, values.astype(np.float32))
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _attention() -> Shapes:
    square, narrow = (WIDTH, WIDTH), (HEAD, WIDTH)
    return {
        "attn_norm": (WIDTH,),
        "attn_q": square,
        "attn_k": narrow,
        "attn_v": narrow,
        "attn_output": square,
    }


def _feed_forward() -> Shapes:
    wide = (HIDDEN, WIDTH)
    return {"ffn_norm": (WIDTH,), "ffn_gate": wide, "ffn_up": wide, "ffn_down": (WIDTH, HIDDEN)}


def _layer(index: int, shapes: Shapes) -> Shapes:
    return {f"blk.{index}.{name}.weight": shape for name, shape in shapes.items()}


def _add_vocabulary(writer: gguf.GGUFWriter, source: Path | None) -> int:
    """Copy the tokenizer's keys from `source`, and return the number of tokens."""
    if source is None:
        writer.add_tokenizer_model("none")
        return VOCABULARY
    fields = gguf.GGUFReader(source).fields
    for name, field in fields.items():
        if name.startswith("tokenizer."):
            kind = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=kind)
    return len(fields["tokenizer.ggml.tokens"].data)
