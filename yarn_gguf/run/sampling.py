"""Sampling that raises where llama-cpp-python's ends the process, or goes on as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from yarn_gguf.native.library import load
from yarn_gguf.native.sampling import sample

load()

from llama_cpp._internals import LlamaContext, LlamaSampler  # noqa: E402  (after load)

Processor = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (tokens so far, scores) -> scores


class Sampler(LlamaSampler):
    """A chain of samplers whose failures are exceptions, those of its logits processors among them."""

    raised: list[BaseException]

    def sample(self, ctx: LlamaContext, idx: int = -1) -> int:
        """As LlamaSampler's. Raises YarnGGUFError, or what a logits processor raised."""
        token = sample(self.sampler, ctx.ctx, idx)
        if self.raised:
            raise self.raised.pop()
        return token


def watched(processors: Iterable[Processor], raised: list[BaseException]) -> list[Processor]:
    """`processors`, with what they raise in `raised`: the library calls them, and cannot pass it on."""
    return [_watched(each, raised) for each in processors]


def _watched(processor: Processor, raised: list[BaseException]) -> Processor:
    def call(tokens: Any, scores: Any) -> Any:
        try:
            return np.broadcast_to(processor(tokens, scores), scores.shape)
        except BaseException as error:
            raised.append(error)
            return scores

    return call
