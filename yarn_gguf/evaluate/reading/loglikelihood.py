"""The log-likelihood of continuations of given contexts; what they have in common is read once.

The inputs are sorted, and as many as fit are read at once as a tree: a token is read once for all inputs that
begin alike up to it. What the whole batch has in common, such as the examples before every question, stays in
the cache for the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.evaluate.reading.cross_entropy import cross_entropy
from yarn_gguf.evaluate.reading.sequences import Batch
from yarn_gguf.progress import Progress
from yarn_gguf.rope.dynamic import DynamicScaling

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama

_INPUTS = 64  # that are read at once
_ROWS = 64  # of logits that are looked at at once
_TRUNK = 0  # the sequence of what all inputs have in common


class Score(NamedTuple):
    """Of a continuation: ln p, in nats; and whether each of its tokens was the likeliest."""

    loglikelihood: float
    greedy: bool


class Scorer:
    """Scores continuations of contexts; the two together have up to `length` tokens.

    On the weights of `llama`, scaled as it is at this moment, with a KV cache of its own. To be closed before
    `llama`. Under dynamic scaling, an input that is longer than the original context is read alone, from an
    empty cache: its factor is its own. Raises ModelLoadError, RopeScalingError.
    """

    def __init__(self, llama: Llama, length: int) -> None:
        self._length = length
        self._inputs = min(_INPUTS, llama.n_batch - 1)  # the native library ends the process over more
        room = length + llama.n_batch
        self._batch = Batch(llama, room, self._inputs + 1, unified=True, longest=length)
        self._trunk: list[int] = []  # what is in the cache
        dynamic = isinstance(llama.rope_scaling, DynamicScaling)
        self._alone = llama.rope_scaling.original_max_position_embeddings if dynamic else length

    def close(self) -> None:
        self._batch.close()

    def score(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], progress: Progress | None = None
    ) -> list[Score]:
        """Of each pair: the tokens of a context, at least one, and those of its continuation.

        progress(done, total): in pairs. Raises YarnGGUFError for a pair that is too long or lacks a context.
        """
        for context, continuation in pairs:
            self._check(context, continuation)
        inputs = sorted((_Input.of(i, *pair) for i, pair in enumerate(pairs)), key=lambda each: each.tokens)
        sums, greedy, done = np.zeros(len(pairs)), np.ones(len(pairs), bool), 0
        for group in self._groups(inputs):
            for numbers, losses, likeliest in self._read(group):
                np.subtract.at(sums, numbers, losses)
                np.logical_and.at(greedy, numbers, likeliest)
            done += len(group)
            if progress is not None:
                progress(done, len(pairs))
        return [Score(float(each), bool(is_greedy)) for each, is_greedy in zip(sums, greedy, strict=True)]

    def _check(self, context: Sequence[int], continuation: Sequence[int]) -> None:
        if not context:
            raise YarnGGUFError(
                "a context needs at least one token: begin it with the model's BOS or EOS token"
            )
        if len(context) + len(continuation) > self._length:
            raise YarnGGUFError(
                f"a context of {len(context)} tokens and its continuation of {len(continuation)} do not fit "
                f"{self._length}: make room for more, or shorten the context"
            )

    def _groups(self, inputs: list[_Input]) -> Iterator[list[_Input]]:
        """Sorted inputs that are read at once: beside what they share, they fit a batch."""
        group: list[_Input] = []
        for each in inputs:
            if group and not self._fits([*group, each]):
                yield group
                group = []
            group.append(each)
        if group:
            yield group

    def _fits(self, group: list[_Input]) -> bool:
        if len(group) > self._inputs or any(len(each.tokens) > self._alone for each in group):
            return False
        new = sum(len(b.tokens) - _common(a.tokens, b.tokens) for a, b in pairwise(group))
        new += len(group[0].tokens) - _common(group[0].tokens, group[-1].tokens)
        return new <= self._batch.n_tokens

    def _read(self, group: list[_Input]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Numbers of inputs, the losses of one token of each, and whether that was the likeliest."""
        is_alone = len(group[0].tokens) > self._alone
        self._batch.reserve(len(group[0].tokens) + 1)
        shared = 0 if is_alone else _common(group[0].tokens, group[-1].tokens)
        first = min((each.targets[0][0] for each in group if each.targets), default=0)
        kept = min(shared, first, _common(self._trunk, group[0].tokens))
        self._keep(kept, len(group))
        tokens = _tree(group, kept, shared)
        for start in range(0, len(tokens), self._batch.n_tokens):
            part = tokens[start : start + self._batch.n_tokens]
            wanted = np.array([bool(each.targets) for each in part])
            logits = self._batch.decode(
                np.array([each.token for each in part]),
                np.array([each.position for each in part]),
                [each.sequences for each in part],
                wanted,
            )
            yield from self._losses(logits, [each.targets for each in part if each.targets])
        self._trunk = group[0].tokens[:shared]

    def _losses(
        self, logits: np.ndarray, targets: list[list[tuple[int, int]]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """targets: of each row, numbers and tokens. Yields numbers, losses, and which were the likeliest."""
        triples = [(row, *each) for row, wanted in enumerate(targets) for each in wanted]
        flat = np.array(triples).reshape(-1, 3)
        for start in range(0, len(flat), _ROWS):
            rows, numbers, tokens = flat[start : start + _ROWS].T
            these = logits[rows]
            losses = cross_entropy(these, tokens, self._batch.n_threads)
            yield numbers, losses, these.argmax(axis=1) == tokens

    def _keep(self, kept: int, count: int) -> None:
        """Only the first `kept` tokens of the trunk, for `count` inputs."""
        context = self._batch.context
        context.kv_cache_seq_keep(_TRUNK)
        context.kv_cache_seq_rm(_TRUNK, kept, -1)
        for i in range(count):
            context.kv_cache_seq_cp(_TRUNK, _TRUNK + 1 + i, 0, kept)


def tokenize(llama: Llama, text: str) -> list[int]:
    """With the BOS token first, if the model's file asks for one; special tokens in the text are such."""
    return llama.tokenize(text.encode(), add_bos=llama.vocabulary.add_bos_token(), special=True)


def prefix_token(llama: Llama) -> int:
    """What stands before a text that has nothing before it."""
    return llama.token_bos() if llama.token_bos() >= 0 else llama.token_eos()


def encode_pair(llama: Llama, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The tokens of a context and of its continuation, as the two together are tokenized.

    As in lm-evaluation-harness: spaces at the end of the context belong to the continuation, and an empty
    context is the prefix token.
    """
    whole, count = tokenize(llama, context + continuation), len(tokenize(llama, context.rstrip()))
    return (whole[:count], whole[count:]) if count else ([prefix_token(llama)], whole)


# ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Input:
    """tokens: all that is read. targets: positions, and the token that each is to predict."""

    number: int
    tokens: list[int]
    targets: list[tuple[int, int]]

    @classmethod
    def of(cls, number: int, context: Sequence[int], continuation: Sequence[int]) -> _Input:
        tokens = [*context, *continuation]
        return cls(number, tokens[:-1], list(enumerate(continuation, len(context) - 1)))


@dataclass
class _Token:
    """sequences: of the inputs that have it. targets: their numbers, and the token that each wants next."""

    token: int
    position: int
    sequences: list[int]
    targets: list[tuple[int, int]] = field(default_factory=list)


def _tree(group: list[_Input], kept: int, shared: int) -> list[_Token]:
    """The tokens after the first `kept`, each once for all inputs that begin alike up to it."""
    tokens: list[_Token] = []
    path: list[_Token] = []  # of the present input
    last = group[0].tokens[:kept]
    for i, each in enumerate(group):
        del path[_common(last, each.tokens) - kept :]
        for position in range(kept + len(path), len(each.tokens)):
            path.append(_Token(each.tokens[position], position, [_TRUNK] if position < shared else []))
            tokens.append(path[-1])
        for token in path:
            token.sequences.append(_TRUNK + 1 + i)
        for position, target in each.targets:
            path[position - kept].targets.append((each.number, target))
        last = each.tokens
    return tokens


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens at the beginning that are the same."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
