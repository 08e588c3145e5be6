"""Small whole numbers, packed into words of 32 bits from the lowest bit on."""

from __future__ import annotations

import numpy as np


def unpacked(words: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Return the numbers of `bits` bits (1 to 8) in int32 words that lie along `axis`, as int32.

    A number may continue in the next word, as those of 3 bits do.
    """
    moved = np.moveaxis(words.astype("<i4", copy=False), axis, -1)
    stream = np.unpackbits(np.ascontiguousarray(moved).view(np.uint8), axis=-1, bitorder="little")
    count = stream.shape[-1] // bits
    numbers = np.packbits(
        stream[..., : count * bits].reshape(*moved.shape[:-1], count, bits), axis=-1, bitorder="little"
    )
    return np.moveaxis(numbers[..., 0].astype(np.int32), -1, axis)
