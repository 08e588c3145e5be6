"""The weights in a PyTorch file. torch is imported only for such a file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yarn_gguf.convert.tensor import NO_WEIGHTS, Tensor
from yarn_gguf.errors import ConversionError

if TYPE_CHECKING:
    import torch


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
    if not (hasattr(stored, "is_floating_point") and stored.is_floating_point()):
        kind = getattr(stored, "dtype", type(stored).__name__)
        raise ConversionError(f"{file}: {name} is {kind}: only floating point can be converted")

    def read(start: int, stop: int) -> np.ndarray:
        return stored.reshape(stored.shape or (1,))[start:stop].float().numpy()

    return Tensor(tuple(stored.shape), read)
