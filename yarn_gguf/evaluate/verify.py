"""The difference between a GGUF file and the checkpoint from which it was made, by position."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.evaluate.reference import Reference
from yarn_gguf.progress import Progress
from yarn_gguf.rope.read import read_model

_BATCH = 512  # tokens


@dataclass(frozen=True)
class PositionErrors:
    """Errors at positions [start, stop).

    logit_error: the relative L2 error of the logits. kl_divergence: the mean of KL(reference || file), in
    nats. top1_agreement: the share of positions with the same likeliest token.
    """

    start: int
    stop: int
    logit_error: float
    kl_divergence: float
    top1_agreement: float


def verify(
    path: str | Path,
    folder: str | Path,
    tokens: Sequence[int],
    progress: Progress | None = None,
) -> list[PositionErrors]:
    """Let a GGUF file and a checkpoint (through transformers) read the same tokens, and compare the logits.

    path: the GGUF file. folder: the checkpoint's. The checkpoint gets the file's rope scaling. If the file is
    dynamic, both use its static factor. Returns errors by quarters of the original context, as far as the
    tokens go. Memory: the checkpoint in float32, the file, and twice the logits of 512 tokens. Raises
    YarnGGUFError, including the errors of Reference and Llama.
    """
    from yarn_gguf.run.llama import Llama  # loads the native library

    model = read_model(path)
    reference = Reference(folder, model)
    errors = []
    static = None if model.dynamic is None else model.scaling
    with closing(Llama(path, rope_scaling=static, n_ctx=len(tokens), n_batch=_BATCH, verbose=False)) as llama:
        pairs = zip(llama.read_logits(tokens, copy=False), reference.read_logits(tokens, _BATCH), strict=True)
        for ours, theirs in pairs:
            errors.append(_errors(path, ours, theirs))
            if progress is not None:
                progress(sum(map(len, errors)), len(tokens))
    return _by_position(np.concatenate(errors), model.original_context)


# ----------------------------------------------------------------------------------------------


def _errors(path: str | Path, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return squared error, squared norm, KL divergence and agreement: float64 (positions, 4)."""
    if ours.shape != theirs.shape:
        sizes = f"{ours.shape[1]} and {theirs.shape[1]} tokens"
        raise YarnGGUFError(f"{path}: vocabularies of {sizes}: the file was made from another checkpoint")
    log_p, log_q = _log_softmax(theirs), _log_softmax(ours)
    columns = [
        np.square(ours - theirs).sum(axis=1, dtype=np.float64),
        np.square(theirs).sum(axis=1, dtype=np.float64),
        (np.exp(log_p) * (log_p - log_q)).sum(axis=1, dtype=np.float64),
        ours.argmax(axis=1) == theirs.argmax(axis=1),
    ]
    return np.stack(columns, axis=1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)


def _by_position(errors: np.ndarray, original_context: int) -> list[PositionErrors]:
    step = max(1, original_context // 4)
    found = []
    for start in range(0, len(errors), step):
        part = errors[start : start + step]
        squared, norm, kl, agreement = part.sum(axis=0)
        stop, count = start + len(part), len(part)
        found.append(PositionErrors(start, stop, (squared / norm) ** 0.5, kl / count, agreement / count))
    return found
