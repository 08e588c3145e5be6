"""GPTQ: numbers of 2, 3, 4 or 8 bits, with a scale and a zero for each group of inputs."""

from __future__ import annotations

import numpy as np

from yarn_gguf.convert.quantized.bits import unpacked
from yarn_gguf.convert.quantized.scaled import groups_of, new_name, partner
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config

_BITS = (2, 3, 4, 8)
_FORMATS = {"gptq": 1, "gptq_v2": 0}  # what is added to a stored zero
_WORD = 32


def from_gptq(tensors: dict[str, Tensor], settings: Config) -> dict[str, Tensor]:
    """Return the weights: NAME.weight for NAME.qweight, NAME.qzeros, NAME.scales and NAME.g_idx."""
    bits = settings.whole("bits")
    if bits not in _BITS:
        settings.refuse("bits", f"one of {_BITS}")
    stored = settings.values.get("checkpoint_format") or settings.values.get("format") or "gptq"
    if stored not in _FORMATS:
        settings.refuse("checkpoint_format", f"one of {', '.join(_FORMATS)}: convert the original checkpoint")
    ends = (".qweight", ".qzeros", ".scales", ".g_idx")
    result = {}
    for name, tensor in tensors.items():
        base, dot, end = name.rpartition(".")
        if dot + end not in ends:
            result[name] = tensor
        elif dot + end == ".qweight":
            result[new_name(tensors, f"{base}.weight", settings)] = _weight(
                tensors, base, bits, _FORMATS[stored], settings
            )
    return result


def _weight(tensors: dict[str, Tensor], base: str, bits: int, offset: int, settings: Config) -> Tensor:
    """Return the weight (outputs, inputs). All rows are made together: the words lie along the inputs."""
    words, zeros, scales = (
        partner(tensors, f"{base}.{end}", settings) for end in ("qweight", "qzeros", "scales")
    )
    inputs, outputs = words.shape[0] * _WORD // bits, words.shape[1]
    groups, index = scales.shape[0], tensors.get(f"{base}.g_idx")
    fits = (
        scales.shape == (groups, outputs)
        and zeros.shape == (groups, outputs * bits // _WORD)
        and (index is None or index.shape == (inputs,))
    )
    if not fits or words.dtype != "I32" or zeros.dtype != "I32":
        raise ConversionError(
            f"{settings.path.parent}: tensor {base}.qweight {words.shape} does not fit its scales "
            f"{scales.shape}, zeros {zeros.shape} and {settings.place}bits = {bits}: download the checkpoint "
            "again"
        )

    def read(start: int, stop: int) -> np.ndarray:
        group = groups_of(index, inputs, groups, settings)
        numbers = unpacked(words.load(), bits, axis=0)
        middle = unpacked(zeros.load(), bits, axis=1) + offset
        weight = scales.load()[group] * (numbers - middle[group]).astype(np.float32)
        return np.ascontiguousarray(weight.T)[start:stop]

    return Tensor((outputs, inputs), read, unit=outputs)
