"""An importance matrix: how much each input of a weight matters, as llama.cpp's imatrix tool wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from yarn_gguf.errors import ConversionError
from yarn_gguf.gguf.header import read_header

_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class ImportanceMatrix:
    """weights: float32 (matrices, inputs) by tensor name; one matrix, or one for each expert.

    datasets: the texts that were read. chunks: how many pieces of them.
    """

    path: Path
    weights: dict[str, np.ndarray]
    datasets: list[str]
    chunks: int

    def of(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return the weights for the tensor `name`, or None. Raise ConversionError for another shape."""
        weights = self.weights.get(name)
        expected = (shape[0] if len(shape) == 3 else 1, shape[-1])
        if weights is not None and weights.shape != expected:
            raise ConversionError(
                f"{self.path}: {name} has importances {weights.shape}, and {expected} are needed: "
                "the importance matrix is of another model"
            )
        return weights

    def add_keys(self, writer: gguf.GGUFWriter) -> None:
        """Write the keys in which llama.cpp's quantize tool names the importance matrix."""
        writer.add_string("quantize.imatrix.file", self.path.name)
        writer.add_string("quantize.imatrix.dataset", self.datasets[0] if self.datasets else "")
        writer.add_int32("quantize.imatrix.entries_count", len(self.weights))
        writer.add_int32("quantize.imatrix.chunks_count", self.chunks)


def read_imatrix(path: str | Path) -> ImportanceMatrix:
    """Return the importance matrix in the GGUF file at `path`.

    Raises GGUFError, ConversionError or OSError.
    """
    path = Path(path)
    read_header(path)  # a damaged file is refused here, with a clear message
    reader = gguf.GGUFReader(path)
    kind = reader.fields.get("general.type")
    if kind is None or kind.contents() != "imatrix":
        raise ConversionError(
            f"{path}: general.type is not 'imatrix': make one with llama.cpp's llama-imatrix"
        )
    tensors = {each.name: each.data for each in reader.tensors}
    names = [name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)]
    chunks, datasets = reader.fields.get("imatrix.chunk_count"), reader.fields.get("imatrix.datasets")
    return ImportanceMatrix(
        path,
        {name: _means(path, name, tensors[name + _SUMS], tensors.get(name + _COUNTS)) for name in names},
        datasets.contents() if datasets else [],
        chunks.contents() if chunks else 0,
    )


def _means(path: Path, name: str, sums: np.ndarray, counts: np.ndarray | None) -> np.ndarray:
    """Return the mean squares of each matrix's inputs; 1 for an expert that was never used."""
    if counts is None or counts.size == 0 or sums.size % counts.size:
        raise ConversionError(f"{path}: {name}{_COUNTS} does not fit {name}{_SUMS}: make the matrix again")
    counts = counts.reshape(-1, 1).astype(np.float32)
    sums = sums.reshape(len(counts), -1).astype(np.float32)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.float32(1))
    if not np.isfinite(means).all():
        raise ConversionError(f"{path}: {name} holds NaN or infinity: make the matrix again")
    return np.ascontiguousarray(means, np.float32)
