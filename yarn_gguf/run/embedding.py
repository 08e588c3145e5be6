"""Texts that may be embedded in one batch."""

from __future__ import annotations

import math

from yarn_gguf.rope.dynamic import DynamicScaling, Scaling
from yarn_gguf.run.handles import llama_cpp


def batches_of(counts: list[int], pooling_type: int, scaling: Scaling | None) -> list[list[int]]:
    """Return the texts, by their numbers, that llama_cpp.Llama may embed together. counts: their tokens.

    Without pooling it takes the tokens of all texts but the first from wrong places. Under dynamic scaling,
    texts in one batch have the s of the longest: those at which s stands still may be together.
    """
    longest: float = math.inf  # of the texts that may be together
    if pooling_type == llama_cpp.LLAMA_POOLING_TYPE_NONE:
        longest = 0
    elif isinstance(scaling, DynamicScaling):
        longest = max(1.0, scaling.scaling.factor) * scaling.scaling.original_context
    together = [i for i, count in enumerate(counts) if count <= longest]
    alone = [[i] for i, count in enumerate(counts) if count > longest]
    return [together, *alone] if together else alone
