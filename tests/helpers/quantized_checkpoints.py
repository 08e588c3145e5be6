"""Quantized checkpoints with random weights, in the layouts of the packages that write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hf_checkpoints import save_checkpoint
from safetensors.torch import load_file, save_file

Parts = dict[str, torch.Tensor]  # by what follows the name of the weight without "weight"
_TINY = {"num_hidden_layers": 1, "intermediate_size": 384, "tie_word_embeddings": True}
GROUP = 64


def save_quantized(folder: Path, settings: dict[str, Any], quantize: Callable[[int, int], Parts]) -> Path:
    """Save a tiny Llama with `quantize(rows, columns)` for each projection.

    settings: its quantization_config.
    """
    save_checkpoint(folder, **_TINY)
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        parts = quantize(*tensors.pop(name).shape)
        tensors |= {name.removesuffix("weight") + part: each.contiguous() for part, each in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder


def fp8(*block: int) -> Callable[[int, int], Parts]:
    """DeepSeek's: one scale for each block, or one in all."""

    def quantize(rows: int, columns: int) -> Parts:
        shape = (-(-rows // block[0]), -(-columns // block[1])) if block else ()
        return {"weight": _fp8(rows, columns), "weight_scale_inv": _scales(*shape)}

    return quantize


def fp8_rows(rows: int, columns: int) -> Parts:
    """FBGEMM's and compressed-tensors' by channel: one scale for each row."""
    return {"weight": _fp8(rows, columns), "weight_scale": _scales(rows, 1)}


def fp8_blocks(rows: int, columns: int) -> Parts:
    """compressed-tensors' by block."""
    return {"weight": _fp8(rows, columns), "weight_scale": _scales(-(-rows // 128), -(-columns // 128))}


def int8_rows(rows: int, columns: int) -> Parts:
    """compressed-tensors' int8 by channel."""
    return {"weight": _integers(rows, columns, -128, 128).to(torch.int8), "weight_scale": _scales(rows, 1)}


def packed(bits: int, zero_point: bool) -> Callable[[int, int], Parts]:
    """compressed-tensors' packed numbers: along the columns; the zeros along the rows."""

    def quantize(rows: int, columns: int) -> Parts:
        groups = columns // GROUP
        parts = {
            "weight_packed": pack(_integers(rows, columns, 0, 1 << bits), bits),
            "weight_shape": torch.tensor([rows, columns]),
            "weight_scale": _scales(rows, groups).bfloat16(),
        }
        if zero_point:
            parts["weight_zero_point"] = pack(_integers(groups, rows, 0, 1 << bits), bits).T
        return parts

    return quantize


def gptq(bits: int, act_order: bool = False) -> Callable[[int, int], Parts]:
    """GPTQ's: numbers along the inputs, zeros along the outputs. act_order: groups of scattered inputs."""

    def quantize(rows: int, columns: int) -> Parts:
        groups = columns // GROUP
        index = torch.arange(columns) // GROUP
        return {
            "qweight": pack(_integers(rows, columns, 0, 1 << bits), bits).T,
            "qzeros": pack(_integers(groups, rows, 0, 1 << bits), bits),
            "scales": _scales(groups, rows).half(),
            "g_idx": (index[torch.randperm(columns)] if act_order else index).int(),
        }

    return quantize


def pack(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack each row into 32-bit words as one long whole number, the first number lowest."""
    packed_rows = []
    for row in numbers.tolist():
        whole = sum(number << (bits * place) for place, number in enumerate(row))
        words = [(whole >> (32 * i)) & 0xFFFFFFFF for i in range(len(row) * bits // 32)]
        packed_rows.append([word - (1 << 32) if word >> 31 else word for word in words])
    return torch.tensor(packed_rows, dtype=torch.int32)


def _fp8(rows: int, columns: int) -> torch.Tensor:
    return (100 * torch.randn(rows, columns)).to(torch.float8_e4m3fn)


def _integers(rows: int, columns: int, low: int, high: int) -> torch.Tensor:
    return torch.randint(low, high, (rows, columns))


def _scales(*shape: int) -> torch.Tensor:
    return torch.rand(shape) * 0.01 + 0.001
