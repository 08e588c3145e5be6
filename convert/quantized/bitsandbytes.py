"""bitsandbytes: codes of 4 bits (NF4, FP4) with scales for blocks, and int8 with scales for rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from yarn_gguf.convert.quantized.scaled import partner
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config

_STATE = ".quant_state.bitsandbytes__"  # NAME.quant_state.bitsandbytes__nf4 is JSON about NAME
_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_ROW_SCALES, _ROW_FORMAT = ".SCB", ".weight_format"
_LARGEST = 127  # the int8 of a row's largest weight


def from_bitsandbytes(tensors: dict[str, Tensor], settings: Config) -> dict[str, Tensor]:
    """Return the weights: NAME for NAME with NAME.absmax and NAME.quant_map, or with the scales SCB."""
    result = {
        name: each
        for name, each in tensors.items()
        if _STATE not in name and not name.endswith((*_PARTS, _ROW_SCALES, _ROW_FORMAT))
    }
    for name in tensors:
        if _STATE in name:
            weight = name.partition(_STATE)[0]
            result[weight] = _from_codes(tensors, weight, name, settings)
        elif name.endswith(_ROW_SCALES):
            weight = name.removesuffix(_ROW_SCALES) + ".weight"
            result[weight] = _from_int8(partner(tensors, weight, settings), tensors[name], weight, settings)
    return result


def _from_int8(weight: Tensor, scales: Tensor, name: str, settings: Config) -> Tensor:
    if weight.dtype != "I8" or scales.shape != weight.shape[:1]:
        raise _unfit(settings, name)

    def read(start: int, stop: int) -> np.ndarray:
        return weight.read(start, stop).astype(np.float32) * (scales.read(start, stop)[:, None] / _LARGEST)

    return Tensor(weight.shape, read)


def _from_codes(tensors: dict[str, Tensor], name: str, state: str, settings: Config) -> Tensor:
    """Return a weight of 4-bit codes, two in a byte, the first in the high bits."""
    codes, table = (partner(tensors, each, settings) for each in (name, f"{name}.quant_map"))
    scales = partner(tensors, f"{name}.absmax", settings)
    described = _state(tensors[state], name, settings)
    (rows, columns), block = described["shape"], described["blocksize"]
    fits = (
        codes.dtype == "U8"
        and codes.shape[0] * 2 == rows * columns
        and columns % 2 == 0
        and table.shape == (16,)
        and scales.shape == (-(-rows * columns // block),)
    )
    if not fits:
        raise _unfit(settings, name)
    nested = _nested(tensors, name, described, scales, settings) if scales.dtype == "U8" else None

    def read(start: int, stop: int) -> np.ndarray:
        first, last = start * columns, stop * columns
        pairs = codes.read(first // 2, last // 2).reshape(-1)
        values = table.load()[np.stack([pairs >> 4, pairs & 15], axis=-1)].reshape(-1)
        factors = scales.load() if nested is None else nested()
        return (values * factors[np.arange(first, last) // block]).reshape(-1, columns)

    return Tensor((rows, columns), read)


def _nested(
    tensors: dict[str, Tensor], name: str, described: dict[str, Any], scales: Tensor, settings: Config
) -> Callable[[], np.ndarray]:
    """Return a function that reads scales which are quantized themselves."""
    table, outer = (
        partner(tensors, f"{name}.{each}", settings) for each in ("nested_quant_map", "nested_absmax")
    )
    size, offset = described.get("nested_blocksize"), described.get("nested_offset")
    if not isinstance(size, int) or size <= 0 or not isinstance(offset, float):
        raise _unfit(settings, name)
    if table.shape != (256,) or outer.shape != (-(-scales.shape[0] // size),):
        raise _unfit(settings, name)

    def read() -> np.ndarray:
        blocks = np.arange(scales.shape[0]) // size
        return table.load()[scales.load()] * outer.load()[blocks] + np.float32(offset)

    return read


def _state(stored: Tensor, name: str, settings: Config) -> dict[str, Any]:
    """Return what the JSON in a tensor says: the shape of the weight, and the size of a block."""
    try:
        state = json.loads(bytes(stored.load().astype(np.uint8)))
        sizes = [*state["shape"], state["blocksize"]]
    except (ValueError, KeyError, TypeError) as error:
        raise _unfit(settings, name) from error
    if len(sizes) != 3 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise _unfit(settings, name)
    return state


def _unfit(settings: Config, name: str) -> ConversionError:
    return ConversionError(
        f"{settings.path.parent}: the tensor {name} does not fit the scales and the table beside it: "
        "download the checkpoint again"
    )
