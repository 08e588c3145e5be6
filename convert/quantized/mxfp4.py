"""MXFP4: 4-bit floating point, with an exponent of two for each group of 32, as in gpt-oss."""

from __future__ import annotations

import numpy as np

from yarn_gguf.convert.quantized.scaled import new_name, partner
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config

_SIZES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_VALUES = np.concatenate([_SIZES, -_SIZES])  # E2M1; the sign is the highest bit
_EXPONENT_BIAS = 127


def from_mxfp4(tensors: dict[str, Tensor], settings: Config) -> dict[str, Tensor]:
    """Return the tensors, each NAME_blocks with its NAME_scales as NAME in transformers' layout."""
    plain = {name: each for name, each in tensors.items() if not name.endswith(("_blocks", "_scales"))}
    for name in (name.removesuffix("_blocks") for name in tensors if name.endswith("_blocks")):
        scales = partner(tensors, f"{name}_scales", settings)
        plain[new_name(tensors, name, settings)] = _experts(name, tensors[f"{name}_blocks"], scales, settings)
    return plain


def _experts(name: str, blocks: Tensor, scales: Tensor, settings: Config) -> Tensor:
    """Return the tensor (experts, inputs, outputs).

    blocks: (experts, outputs, groups, 16), two numbers a byte, the first in the low four bits.
    scales: (experts, outputs, groups), the biased exponent of two of each group.
    """
    if blocks.shape[:-1] != scales.shape or len(blocks.shape) != 4 or {blocks.dtype, scales.dtype} != {"U8"}:
        raise ConversionError(
            f"{settings.path.parent}: tensor {name}_blocks {blocks.shape} does not fit its scales "
            f"{scales.shape}: download the checkpoint again"
        )
    experts, outputs, groups, half = blocks.shape

    def read(start: int, stop: int) -> np.ndarray:
        packed = blocks.read(start, stop)
        exponents = scales.read(start, stop).astype(np.int32) - _EXPONENT_BIAS
        values = np.stack([_VALUES[packed & 15], _VALUES[packed >> 4]], axis=-1)
        values = np.ldexp(values, exponents[..., None, None])
        return values.reshape(stop - start, outputs, -1).swapaxes(1, 2)

    return Tensor((experts, groups * half * 2, outputs), read)
