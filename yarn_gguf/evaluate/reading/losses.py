"""The loss at each token of a text: in one pass, or by a sliding window."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.evaluate.reading.cross_entropy import cross_entropy
from yarn_gguf.evaluate.reading.windows import Windows
from yarn_gguf.progress import Progress

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama


def token_losses(llama: Llama, tokens: Sequence[int], progress: Progress | None = None) -> np.ndarray:
    """Return the loss at each position of `tokens`, read in one pass from an empty cache.

    float64 (len(tokens) - 1,): element i is -ln p(tokens[i + 1] | tokens[: i + 1]), in nats. The tokens stay
    in the cache. Memory: the logits of one batch.
    """
    losses: list[np.ndarray] = []
    targets = np.asarray(tokens[1:])
    with llama.turns.take():  # one request: nobody closes the Llama in its midst
        llama.reset()
        for logits in llama.read_logits(tokens, copy=False):
            done = sum(map(len, losses))
            wanted = targets[done : done + len(logits)]
            losses.append(cross_entropy(logits[: len(wanted)], wanted, llama.n_threads_batch))
            if progress is not None:
                progress(done + len(logits), len(tokens))
    return np.concatenate(losses)


def window_ends(count: int, window: int, stride: int = 256) -> range:
    """Return the ends of windows of `window` tokens in a text of `count`, one each stride.

    Raises YarnGGUFError for a window that does not fit the text, or a stride that does not fit the window.
    """
    if not 0 < stride < window <= count:
        raise YarnGGUFError(
            f"a window of {window} tokens by strides of {stride} does not fit a text of {count}: the "
            "stride must be shorter than the window, and the window no longer than the text"
        )
    return range(window, count + 1, stride)


def window_losses(
    llama: Llama,
    tokens: Sequence[int],
    window: int,
    ends: range,
    parallel: int = 1,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return the loss of each token but the first, by a sliding window: float64, in the tokens' order.

    This is the evaluation of the YaRN paper (section 4.3.1, after Press et al., 2022). A window of `window`
    tokens moves by a stride, and each window is read from an empty cache. All tokens of the first window
    count; of each later window, only the last stride counts. If the model begins texts with a BOS token, BOS
    replaces the first token of each window.

    ends: all or some of window_ends, in order. parallel: the number of windows that are read at once, each
    with a KV cache. The Llama's own cache is not changed.
    """
    begin = list(tokens[:1]) if tokens[0] == llama.token_bos() and llama.vocabulary.add_bos_token() else []
    losses: list[np.ndarray] = []
    with closing(Windows(llama, window, parallel)) as windows:
        for first in range(0, len(ends), parallel):
            some = ends[first : first + parallel]
            texts = [[*begin, *tokens[end - window + len(begin) : end]] for end in some]
            counts = [window - 1 if end == window else ends.step for end in some]
            losses += windows.losses(texts, counts)
            if progress is not None:
                progress(min(first + parallel, len(ends)), len(ends))
    return np.concatenate(losses)
