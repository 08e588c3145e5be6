"""Sampling with exceptions where llama-cpp-python's ends the process, or goes on as if nothing had failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from yarn_gguf.native.sampling import sample
from yarn_gguf.run.handles import Context

from llama_cpp._internals import LlamaContext, LlamaSampler  # isort: skip  (handles chooses the library)

Processor = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (tokens so far, scores) -> scores


class Sampler(LlamaSampler):
    """A chain of samplers. Its failures, and those of its logits processors, are exceptions."""

    raised: list[BaseException]

    def sample(self, ctx: Context | LlamaContext, idx: int = -1) -> int:
        """Return a token by the logits at `idx`. Raises YarnGGUFError, or a logits processor's exception."""
        token = sample(self.sampler, ctx.ctx, idx)
        if self.raised:
            raise self.raised.pop()
        return token


def watched(processors: Iterable[Processor], raised: list[BaseException]) -> list[Processor]:
    """Return `processors` that note their exceptions in `raised`: the library cannot pass these on."""
    return [_watched(each, raised) for each in processors]


def _watched(processor: Processor, raised: list[BaseException]) -> Processor:
    def call(tokens: np.ndarray, scores: np.ndarray) -> Any:
        try:
            return np.broadcast_to(processor(tokens, scores), scores.shape)
        except BaseException as error:
            raised.append(error)
            return scores

    return call
