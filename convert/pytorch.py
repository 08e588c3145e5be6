"""The weights in a PyTorch file. torch is imported only for such a file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yarn_gguf.convert.dtypes import WHOLE_NUMBERS
from yarn_gguf.convert.tensor import NO_WEIGHTS, Tensor
from yarn_gguf.errors import ConversionError

if TYPE_CHECKING:
    import torch

# PyTorch's types, and safetensors' names of them
_DTYPES = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0"},
    **{"uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"},
}


def open_pytorch(file: Path) -> dict[str, Tensor]:
    """Return the tensors in `file`, mapped. No code in the file runs. Raises ConversionError."""
    try:
        import torch
    except ImportError as error:
        raise ConversionError(
            f"{file}: needs PyTorch (pip install torch), or the checkpoint as safetensors"
        ) from error
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ConversionError(f"{file}: damaged, or holds more than weights ({reason})") from error
    return {name: _tensor(file, name, each) for name, each in stored.items() if not name.endswith(NO_WEIGHTS)}


def _tensor(file: Path, name: str, stored: torch.Tensor) -> Tensor:
    kind = str(getattr(stored, "dtype", type(stored).__name__)).removeprefix("torch.")
    if kind not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise ConversionError(f"{file}: tensor {name} is {kind}: only {known} can be converted")
    dtype = _DTYPES[kind]

    def read(start: int, stop: int) -> np.ndarray:
        rows = stored.reshape(stored.shape or (1,))[start:stop]
        return (rows if dtype in WHOLE_NUMBERS else rows.float()).numpy()

    return Tensor(tuple(stored.shape), read, dtype=dtype)
