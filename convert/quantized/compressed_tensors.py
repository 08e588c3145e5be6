"""compressed-tensors, the format of LLM Compressor: weights of 8 bits, and packed ones of fewer."""

from __future__ import annotations

from typing import Any

import numpy as np

from yarn_gguf.convert.quantized.bits import unpacked
from yarn_gguf.convert.quantized.scaled import (
    OF_ACTIVATIONS,
    groups_of,
    new_name,
    partner,
    scale_values,
    scaled,
)
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config

_PLAIN = ("float-quantized", "int-quantized", "naive-quantized")  # a number is a byte
_PACKED = "pack-quantized"
_REMEDY = "convert the checkpoint that this one was made from"
_PARTS = ("_packed", "_scale", "_shape", "_zero_point", "_g_idx")


def from_compressed_tensors(tensors: dict[str, Tensor], settings: Config) -> dict[str, Tensor]:
    """Return the weights: NAME for NAME or NAME_packed, with NAME_scale and perhaps NAME_zero_point."""
    weights = _scheme(settings)
    stored = settings.values.get("format")
    if stored not in (*_PLAIN, _PACKED):
        settings.refuse("format", f"one of {', '.join(_PLAIN)}, {_PACKED}: {_REMEDY}")
    kept = {name: each for name, each in tensors.items() if not name.endswith(OF_ACTIVATIONS)}
    scales = [name for name in kept if name.endswith(".weight_scale")]
    parts = {name.removesuffix("_scale") + part for name in scales for part in _PARTS}
    result = {name: each for name, each in kept.items() if name not in parts}
    for name in (name.removesuffix("_scale") for name in scales):
        make = _packed if stored == _PACKED else _plain
        result[name] = make(kept, name, weights, settings)
    return result


def _scheme(settings: Config) -> Config:
    """Return how weights are quantized. Raises RopeScalingError if that is not the same for all of them."""
    for name in ("sparsity_config", "transform_config"):
        own = settings.section(name).values
        if own and own.get("format", "") != "dense":
            settings.refuse(name, f"left out: {_REMEDY}")
    groups = settings.section("config_groups")
    schemes = [groups.section(name).section("weights") for name in groups.values]
    if not schemes or any(each.values != schemes[0].values for each in schemes):
        settings.refuse("config_groups", f"one or more groups with the same weights: {_REMEDY}")
    return schemes[0]


def _plain(tensors: dict[str, Tensor], name: str, weights: Config, settings: Config) -> Tensor:
    """Return a weight of bytes: one scale in all, one for each row, or one for each block."""
    own, scale = partner(tensors, name, settings), tensors[f"{name}_scale"]
    if own.dtype not in ("I8", "F8_E4M3"):
        weights.refuse("type", f"that of {name}, which is {own.dtype}")
    strategy = weights.values.get("strategy")
    if strategy not in ("tensor", "channel", "block", "group"):
        weights.refuse("strategy", f"tensor, channel, block or group: {_REMEDY}")
    if f"{name}_g_idx" in tensors:
        weights.refuse("actorder", f"null: {_REMEDY}")
    block: list[Any] | None = None
    if strategy == "block":
        block = weights.values.get("block_structure")
        if not (isinstance(block, list) and len(block) == 2 and min(block) > 0):
            weights.refuse("block_structure", "two numbers > 0")
    elif strategy == "group":
        block = [1, weights.whole("group_size")]
    zero = tensors.get(f"{name}_zero_point")
    return scaled(name, own if zero is None else _shifted(own, zero, name, settings), scale, block, settings)


def _shifted(weight: Tensor, zero: Tensor, name: str, settings: Config) -> Tensor:
    """Return a weight less the zero of its tensor or of each row."""
    rows = weight.shape[0]
    if zero.shape not in ((), (1,), (1, 1), (rows, 1)):
        raise _unfit(settings, name, f"zeros {zero.shape}")

    def read(start: int, stop: int) -> np.ndarray:
        middle = np.broadcast_to(zero.load().reshape(-1, 1), (rows, 1)).astype(np.float32)
        return weight.read(start, stop).astype(np.float32) - middle[start:stop]

    return Tensor(weight.shape, read)


def _packed(tensors: dict[str, Tensor], name: str, weights: Config, settings: Config) -> Tensor:
    """Return a weight of packed numbers: a scale for each row, or for each group of a row."""
    bits = weights.whole("num_bits")
    if bits > 8 or weights.values.get("type", "int") != "int":
        weights.refuse("num_bits", f"at most 8, of the type 'int': {_REMEDY}")
    words, scale = partner(tensors, f"{name}_packed", settings), tensors[f"{name}_scale"]
    sizes = partner(tensors, f"{new_name(tensors, name, settings)}_shape", settings)
    if sizes.shape != (2,):
        raise _unfit(settings, name, f"a shape {sizes.shape}")
    rows, columns = map(int, sizes.load())
    zero, index = tensors.get(f"{name}_zero_point"), tensors.get(f"{name}_g_idx")
    groups = scale.shape[-1]
    fits = (
        words.shape in ((rows, _dense(columns, bits)), (rows, _padded(columns, bits)))
        and scale.shape == (rows, groups)
        and columns % groups == 0
        and (index is None or index.shape == (columns,))
        and (zero is None or zero.shape[0] in (_dense(rows, bits), _padded(rows, bits)))
        and (zero is None or zero.shape[1:] == (groups,))
    )
    if not fits:
        raise _unfit(settings, name, f"words {words.shape}, scales {scale.shape}, shape ({rows}, {columns})")

    def read(start: int, stop: int) -> np.ndarray:
        numbers = _numbers(words.read(start, stop), bits, columns, axis=1)
        group = groups_of(index, columns, groups, settings)
        middle: Any = 1 << (bits - 1)
        if zero is not None:
            middle = _numbers(zero.load(), bits, rows, axis=0)[start:stop][:, group]
        factors = scale_values(scale.read(start, stop), scale.dtype)[:, group]
        return (numbers - middle).astype(np.float32) * factors

    return Tensor((rows, columns), read)


def _numbers(words: np.ndarray, bits: int, count: int, axis: int) -> np.ndarray:
    """Return `count` numbers along `axis`. In older files each number lies in one word."""
    if words.shape[axis] == _dense(count, bits):
        numbers = unpacked(words, bits, axis)
    else:
        shifts = np.arange(32 // bits, dtype=np.int32) * bits
        moved = (np.moveaxis(words, axis, -1)[..., None] >> shifts) & ((1 << bits) - 1)
        numbers = np.moveaxis(moved.reshape(*moved.shape[:-2], -1), -1, axis)
    return np.take(numbers, np.arange(count), axis)


def _dense(count: int, bits: int) -> int:
    """Return the words of `count` numbers, if they use every bit."""
    return -(-count * bits // 32)


def _padded(count: int, bits: int) -> int:
    """Return the words of `count` numbers, if each lies in one word."""
    return -(-count // (32 // bits))


def _unfit(settings: Config, name: str, found: str) -> ConversionError:
    return ConversionError(
        f"{settings.path.parent}: the parts of {name} do not fit ({found}): download again"
    )
