"""The log-likelihood of continuations of given contexts; shared prefixes are read once.

The inputs are sorted, and as many as fit are read at once as a prefix tree: each token is read once for all
inputs that share the prefix up to it. The prefix that a whole group shares, such as the examples before every
question, stays in the cache for the next group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.evaluate.reading.cross_entropy import cross_entropy
from yarn_gguf.evaluate.reading.sequences import SequenceContext
from yarn_gguf.progress import Progress
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.run.cached_text import common_prefix_of_lists

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama

_INPUTS = 64  # inputs in a group, at most
_ROWS = 64  # rows of logits that are copied and scored at once
_TRUNK = 0  # the sequence that holds the shared prefix of a group


class Score(NamedTuple):
    """Score of a continuation: ln p in nats, and whether each of its tokens was the likeliest."""

    loglikelihood: float
    greedy: bool


class Scorer:
    """Scores continuations of contexts. A context and its continuation have up to `length` tokens together.

    Uses the weights of `llama`, the rope scaling that it has at this moment, and a KV cache that it does not
    share. Close it before `llama`. Under dynamic scaling, an input longer than the original context has its
    own factor, so it is read alone from an empty cache. Raises ModelLoadError, RopeScalingError.
    """

    def __init__(self, llama: Llama, length: int) -> None:
        self._length = length
        self._max_inputs = min(_INPUTS, llama.n_batch - 1)  # the native library aborts the process over more
        room = length + llama.n_batch
        self._reader = SequenceContext(llama, room, self._max_inputs + 1, unified=True, longest=length)
        self._trunk: list[int] = []  # the tokens in the cache
        scaling = llama.rope_scaling
        original = scaling.original_max_position_embeddings if isinstance(scaling, DynamicScaling) else None
        self._longest_shared = original or length  # tokens of an input that is read beside others

    def close(self) -> None:
        self._reader.close()

    def score(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], progress: Progress | None = None
    ) -> list[Score]:
        """Return the score of each pair: the tokens of a context, at least one, and of its continuation.

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
        """Yield groups of sorted inputs that are read at once: without shared prefixes, they fit a batch."""
        group: list[_Input] = []
        for each in inputs:
            if group and not self._fits([*group, each]):
                yield group
                group = []
            group.append(each)
        if group:
            yield group

    def _fits(self, group: list[_Input]) -> bool:
        if len(group) > self._max_inputs or any(len(each.tokens) > self._longest_shared for each in group):
            return False
        new = sum(len(b.tokens) - common_prefix_of_lists(a.tokens, b.tokens) for a, b in pairwise(group))
        new += len(group[0].tokens) - common_prefix_of_lists(group[0].tokens, group[-1].tokens)
        return new <= self._reader.n_tokens

    def _read(self, group: list[_Input]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield numbers of inputs, the loss of one token of each, and whether it was the likeliest token."""
        is_alone = len(group[0].tokens) > self._longest_shared
        self._reader.reserve(len(group[0].tokens) + 1)
        shared = 0 if is_alone else common_prefix_of_lists(group[0].tokens, group[-1].tokens)
        first = min((each.targets[0][0] for each in group if each.targets), default=0)
        kept = min(shared, first, common_prefix_of_lists(self._trunk, group[0].tokens))
        self._keep(kept, len(group))
        tokens = _tree(group, kept, shared)
        for start in range(0, len(tokens), self._reader.n_tokens):
            part = tokens[start : start + self._reader.n_tokens]
            wanted = np.array([bool(each.targets) for each in part])
            logits = self._reader.decode(
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
        """Yield numbers of inputs, losses, and whether each target was the likeliest token.

        targets: for each row of logits, pairs of an input's number and the token that it wants.
        """
        triples = [(row, *each) for row, wanted in enumerate(targets) for each in wanted]
        flat = np.array(triples).reshape(-1, 3)
        for start in range(0, len(flat), _ROWS):
            rows, numbers, tokens = flat[start : start + _ROWS].T
            chosen = logits[rows]
            losses = cross_entropy(chosen, tokens, self._reader.n_threads)
            yield numbers, losses, chosen.argmax(axis=1) == tokens

    def _keep(self, kept: int, count: int) -> None:
        """Cut the cache to the first `kept` tokens of the trunk, and share them with `count` inputs."""
        context = self._reader.context
        context.kv_cache_seq_keep(_TRUNK)
        context.kv_cache_seq_rm(_TRUNK, kept, -1)
        for i in range(count):
            context.kv_cache_seq_cp(_TRUNK, _TRUNK + 1 + i, 0, kept)


def tokenize(llama: Llama, text: str) -> list[int]:
    """Return the tokens of `text`, with BOS first if the model's file asks for it. Parses special tokens."""
    return llama.tokenize(text.encode(), add_bos=llama.vocabulary.add_bos_token(), special=True)


def prefix_token(llama: Llama) -> int:
    """Return the token that serves as the context of a text without one: BOS, or else EOS."""
    return llama.token_bos() if llama.token_bos() >= 0 else llama.token_eos()


def encode_pair(llama: Llama, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a context and of its continuation, which are tokenized as one text.

    As in lm-evaluation-harness, spaces at the end of the context count as part of the continuation, and an
    empty context becomes the prefix token.
    """
    whole, count = tokenize(llama, context + continuation), len(tokenize(llama, context.rstrip()))
    return (whole[:count], whole[count:]) if count else ([prefix_token(llama)], whole)


# ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Input:
    """An input. tokens: the tokens to read. targets: positions, and the token that each must predict."""

    number: int
    tokens: list[int]
    targets: list[tuple[int, int]]

    @classmethod
    def of(cls, number: int, context: Sequence[int], continuation: Sequence[int]) -> _Input:
        tokens = [*context, *continuation]
        return cls(number, tokens[:-1], list(enumerate(continuation, len(context) - 1)))


@dataclass
class _Token:
    """A token of the tree. sequences: those of the inputs that share it. targets: (input, next token)."""

    token: int
    position: int
    sequences: list[int]
    targets: list[tuple[int, int]] = field(default_factory=list)


def _tree(group: list[_Input], kept: int, shared: int) -> list[_Token]:
    """Return the tokens after the first `kept`, each once for all inputs that share the prefix up to it."""
    tokens: list[_Token] = []
    path: list[_Token] = []  # the tokens of the current input
    last = group[0].tokens[:kept]
    for i, each in enumerate(group):
        del path[common_prefix_of_lists(last, each.tokens) - kept :]
        for position in range(kept + len(path), len(each.tokens)):
            path.append(_Token(each.tokens[position], position, [_TRUNK] if position < shared else []))
            tokens.append(path[-1])
        for token in path:
            token.sequences.append(_TRUNK + 1 + i)
        for position, target in each.targets:
            path[position - kept].targets.append((each.number, target))
        last = each.tokens
    return tokens
