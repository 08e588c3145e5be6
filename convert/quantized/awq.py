"""AWQ: numbers of 4 bits, with a scale and a zero for each group of inputs, packed along the outputs."""

from __future__ import annotations

import numpy as np

from yarn_gguf.convert.quantized.bits import unpacked
from yarn_gguf.convert.quantized.scaled import new_name, partner
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config

_BITS, _IN_A_WORD = 4, 8
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where each of eight outputs lies in its word


def from_awq(tensors: dict[str, Tensor], settings: Config) -> dict[str, Tensor]:
    """Return the weights: NAME.weight for NAME.qweight, NAME.qzeros and NAME.scales."""
    if settings.whole("bits", settings.values.get("w_bit")) != _BITS:
        settings.refuse("bits", "4: convert the original checkpoint")
    version = settings.values.get("version") or settings.values.get("format") or "gemm"
    if str(version).lower() != "gemm":
        settings.refuse("version", "'gemm': convert the original checkpoint")
    result = {}
    for name, tensor in tensors.items():
        base, _, end = name.rpartition(".")
        if end == "qweight":
            result[new_name(tensors, f"{base}.weight", settings)] = _weight(tensors, base, settings)
        elif end not in ("qzeros", "scales"):
            result[name] = tensor
    return result


def _weight(tensors: dict[str, Tensor], base: str, settings: Config) -> Tensor:
    """Return the weight (outputs, inputs). All rows are made together, from columns of the file."""
    words, zeros, scales = (
        partner(tensors, f"{base}.{end}", settings) for end in ("qweight", "qzeros", "scales")
    )
    inputs, outputs, groups = words.shape[0], words.shape[1] * _IN_A_WORD, scales.shape[0]
    fits = scales.shape == (groups, outputs) and zeros.shape == (groups, words.shape[1])
    if not fits or inputs % groups or words.dtype != "I32" or zeros.dtype != "I32":
        raise ConversionError(
            f"{settings.path.parent}: tensor {base}.qweight {words.shape} does not fit its scales "
            f"{scales.shape} and zeros {zeros.shape}: download the checkpoint again"
        )

    def read(start: int, stop: int) -> np.ndarray:
        numbers, middle, factors = _outputs(words), _outputs(zeros), scales.load()
        by_group = numbers.reshape(groups, -1, outputs) - middle[:, None]
        weight = (by_group.astype(np.float32) * factors[:, None]).reshape(inputs, outputs)
        return np.ascontiguousarray(weight.T)[start:stop]

    return Tensor((outputs, inputs), read, unit=outputs)


def _outputs(words: Tensor) -> np.ndarray:
    """Return the numbers of each row, in the order of the outputs."""
    numbers = unpacked(words.load(), _BITS, axis=1)
    return numbers.reshape(len(numbers), -1, _IN_A_WORD)[..., _PLACES].reshape(len(numbers), -1)
