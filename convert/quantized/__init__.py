"""Quantized checkpoints: their weights as float32, a few rows at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from yarn_gguf.convert.dtypes import WHOLE_NUMBERS
from yarn_gguf.convert.quantized.awq import from_awq
from yarn_gguf.convert.quantized.bitsandbytes import from_bitsandbytes
from yarn_gguf.convert.quantized.compressed_tensors import from_compressed_tensors
from yarn_gguf.convert.quantized.fp8 import from_fbgemm, from_fp8, from_modelopt
from yarn_gguf.convert.quantized.gptq import from_gptq
from yarn_gguf.convert.quantized.mxfp4 import from_mxfp4
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config

Tensors = dict[str, Tensor]
_SECTIONS = ("quantization_config", "compression_config")  # the second is compressed-tensors' older name
_MODELOPT = "hf_quant_config.json"
_NAMED_BY = {"load_in_4bit": "bitsandbytes", "load_in_8bit": "bitsandbytes"}  # without quant_method

METHODS: dict[str, Callable[[Tensors, Config], Tensors]] = {
    "fp8": from_fp8,
    "fbgemm_fp8": from_fbgemm,
    "modelopt": from_modelopt,
    "compressed-tensors": from_compressed_tensors,
    "gptq": from_gptq,
    "awq": from_awq,
    "bitsandbytes": from_bitsandbytes,
    "mxfp4": from_mxfp4,
}


def is_quantized(config: Config) -> bool:
    """Return whether a checkpoint says how its weights are quantized. config: its config.json."""
    return _settings(config) is not None


def dequantized(tensors: Tensors, config: Config) -> Tensors:
    """Return a checkpoint's weights, with the quantized ones as float32 under their usual names.

    config: its config.json. Raises ConversionError for a quantization that cannot be read, and for weights
    of whole numbers that none explains.
    """
    settings = _settings(config)
    if settings is not None:
        method = settings.values.get("quant_method") or next(
            (name for flag, name in _NAMED_BY.items() if settings.values.get(flag)), None
        )
        if method not in METHODS:
            raise ConversionError(
                f"{config.path}: {settings.place.rstrip('.')}: this checkpoint is quantized with {method!r}. "
                f"Only {', '.join(METHODS)} can be converted: convert the checkpoint that it was made from, "
                "or let transformers dequantize and save it. If its weights are not quantized, remove the "
                "section"
            )
        tensors = METHODS[method](tensors, settings)
    for name, tensor in tensors.items():
        if tensor.dtype in WHOLE_NUMBERS:
            raise ConversionError(
                f"{config.path.parent}: tensor {name} is {tensor.dtype}, whole numbers without a meaning: "
                "config.json names no quantization that it belongs to. Convert the unquantized checkpoint"
            )
    return tensors


# ----------------------------------------------------------------------------------------------


def _settings(config: Config) -> Config | None:
    """Return the section that describes the quantization; None if there is none."""
    for name in _SECTIONS:
        if config.values.get(name):
            return config.section(name)
    path = config.path.with_name(_MODELOPT)
    return _modelopt_settings(path) if path.is_file() else None


def _modelopt_settings(path: Path) -> Config:
    """Return what NVIDIA's Model Optimizer wrote beside config.json."""
    try:
        quantization = json.loads(path.read_text(encoding="utf-8"))["quantization"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{path}: damaged ({error!r}): download the checkpoint again") from error
    return Config(path, "quantization.", {"quant_method": "modelopt"} | quantization)
