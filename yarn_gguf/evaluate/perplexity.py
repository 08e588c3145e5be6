"""How well a model predicts a text, position by position, in one pass over it.

Perplexity over a whole text hides a collapse beyond the trained context; buckets of positions show it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from yarn_gguf.llama import Llama


def token_losses(
    llama: Llama, tokens: Sequence[int], progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """The loss at each position of `tokens`, from an empty cache.

    Returns float64 (len(tokens) - 1,): element i is -ln p(tokens[i + 1] | tokens[: i + 1]), in nats. The
    tokens stay in the cache. Memory: the logits of one batch.
    """
    llama.reset()
    losses: list[np.ndarray] = []
    targets = np.asarray(tokens[1:])
    for logits in llama.read_logits(tokens):
        done = sum(map(len, losses))
        wanted = targets[done : done + len(logits)]
        losses.append(_cross_entropy(logits[: len(wanted)], wanted))
        if progress is not None:
            progress(done + len(logits), len(tokens))
    return np.concatenate(losses)


def bucket_perplexities(losses: np.ndarray, edges: Sequence[int]) -> list[float]:
    """exp(mean loss) of the positions in each [edges[i], edges[i + 1])."""
    return [math.exp(np.mean(losses[low:high])) for low, high in itertools.pairwise(edges)]


def _cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    highest = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - highest).sum(axis=1, dtype=np.float64)) + highest[:, 0]
    return log_sum - logits[np.arange(len(targets)), targets]
