"""A tensor that is read when it is needed, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import lcm, prod

import numpy as np

# what older checkpoints hold besides weights: frequencies and masks
NO_WEIGHTS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
_PIECE = 1 << 22  # elements that are compared at once: 16 MiB of float32


@dataclass(frozen=True)
class Tensor:
    """Rows, along the first axis, of a tensor of `shape`.

    read(start, stop): float32 (stop - start, *shape[1:]), row-major. Both bounds are multiples of `unit`, or
    the end. unit: the number of rows that can only be made together. dtype: the type in the checkpoint, by
    its name in convert/dtypes.py; of whole numbers, `read` returns that type.
    """

    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]
    unit: int = 1
    dtype: str = "F32"

    def load(self) -> np.ndarray:
        """Read all rows."""
        if not self.shape:
            return self.read(0, 1).reshape(())
        return self.read(0, self.shape[0])

    def map(
        self,
        function: Callable[[np.ndarray], np.ndarray],
        shape: tuple[int, ...] | None = None,
        groups: int = 1,
    ) -> Tensor:
        """Return the tensor that `function` makes of this one. shape: its shape, if that changes.

        groups: the number of equal groups of rows (heads, experts). `function` makes each group of new rows
        from one group of old rows, so that only one group has to be in memory. If this tensor's unit is no
        part of a group, all groups are made together.
        """
        shape = shape or self.shape
        source, target = self.shape[0] // groups, shape[0] // groups
        is_divisible = source % self.unit == 0

        def read(start: int, stop: int) -> np.ndarray:
            if is_divisible:
                wanted = range(start // target, -(-stop // target))
                parts = [function(self.read(i * source, (i + 1) * source)) for i in wanted]
            else:
                parts = [function(group) for group in np.split(self.load(), groups)]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)

        return Tensor(shape, read, target if is_divisible else shape[0])


def stack(tensors: Iterable[Tensor]) -> Tensor:
    """Stack equal tensors along a new first axis."""
    tensors = tuple(tensors)
    shape = (len(tensors), *tensors[0].shape)
    return Tensor(shape, lambda start, stop: np.stack([each.load() for each in tensors[start:stop]]))


def equal(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors have the same shape and values. Reads a few rows at a time."""
    if first.shape != second.shape:
        return False
    rows, unit = first.shape[0], lcm(first.unit, second.unit)
    step = max(1, _PIECE // (unit * prod(first.shape[1:]))) * unit
    pieces = ((start, min(start + step, rows)) for start in range(0, rows, step))
    return all(np.array_equal(first.read(*each), second.read(*each)) for each in pieces)
