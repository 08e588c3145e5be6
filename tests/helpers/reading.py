"""The logits of a whole text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yarn_gguf.run.llama import Llama


def read(llama: Llama, tokens: Sequence[int]) -> np.ndarray:
    """Return the logits of `tokens`, read after the cached text: float32 (tokens, n_vocab)."""
    return np.concatenate([part.copy() for part in llama.read_logits(tokens)])
