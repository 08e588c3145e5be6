"""The difference between the logits of a GGUF file and those of a checkpoint, by position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yarn_gguf.errors import OtherModelError
from yarn_gguf.evaluate.reference import Reference
from yarn_gguf.progress import Progress
from yarn_gguf.rope.read import RopeModel

_BATCH = 512  # tokens


@dataclass(frozen=True)
class PositionErrors:
    """Errors at positions [start, stop).

    logit_error: the relative L2 error of the logits. kl_divergence: the mean of KL(checkpoint || file), in
    nats. expected_kl: the same of the control; None without one. top1_agreement: the share of positions with
    the same likeliest token.
    """

    start: int
    stop: int
    logit_error: float
    kl_divergence: float
    expected_kl: float | None
    top1_agreement: float


def read_errors(
    model: RopeModel,
    folder: str | Path,
    control: Path | None,
    tokens: Sequence[int],
    file_scaling: bool = False,
    progress: Progress | None = None,
) -> list[PositionErrors]:
    """Let a GGUF file, a control and a checkpoint read the same tokens, and compare the logits.

    Returns errors by quarters of the original context, as far as the tokens go. control: another GGUF file,
    or None. file_scaling: the checkpoint gets the scaling of the file. Raises OtherModelError for another
    size of vocabulary, and the errors of Reference and Llama.
    """
    from yarn_gguf.run.llama import Llama  # loads the native library

    reference = Reference(folder, model if file_scaling or model.dynamic else None)
    static = None if model.dynamic is None else model.scaling
    options: dict[str, Any] = {
        "rope_scaling": static,
        "n_ctx": len(tokens),
        "n_batch": _BATCH,
        "verbose": False,
    }
    errors: list[np.ndarray] = []
    with ExitStack() as stack:
        paths = [model.path] if control is None else [model.path, control]
        llamas = [stack.enter_context(closing(Llama(path, **options))) for path in paths]
        readers = [llama.read_logits(tokens, copy=False) for llama in llamas]
        for theirs, *ours in zip(reference.read_logits(tokens, _BATCH), *readers, strict=True):
            errors.append(_columns(theirs, *ours))
            if progress is not None:
                progress(sum(map(len, errors)), len(tokens))
    return list(_by_position(np.concatenate(errors), model.original_context))


# ----------------------------------------------------------------------------------------------


def _columns(theirs: np.ndarray, ours: np.ndarray, control: np.ndarray | None = None) -> np.ndarray:
    """Return squared error, squared norm, both KL divergences and agreement: float64 (positions, 5).

    Without a control, its divergence is NaN.
    """
    if ours.shape != theirs.shape:
        raise OtherModelError(f"it predicts {ours.shape[1]} tokens, and the checkpoint {theirs.shape[1]}")
    log_p = _log_softmax(theirs)
    columns = [
        np.square(ours - theirs).sum(axis=1, dtype=np.float64),
        np.square(theirs).sum(axis=1, dtype=np.float64),
        _kl_divergence(log_p, ours),
        np.full(len(ours), np.nan) if control is None else _kl_divergence(log_p, control),
        ours.argmax(axis=1) == theirs.argmax(axis=1),
    ]
    return np.stack(columns, axis=1)


def _kl_divergence(log_p: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return KL(p || softmax of the logits) of each position, in nats."""
    return (np.exp(log_p) * (log_p - _log_softmax(logits))).sum(axis=1, dtype=np.float64)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)


def _by_position(errors: np.ndarray, original_context: int) -> Iterator[PositionErrors]:
    step = max(1, original_context // 4)
    for start in range(0, len(errors), step):
        part = errors[start : start + step]
        squared, norm, kl, expected, agreement = (float(each) for each in part.sum(axis=0))
        count = len(part)
        yield PositionErrors(
            start=start,
            stop=start + count,
            logit_error=(squared / norm) ** 0.5,
            kl_divergence=kl / count,
            expected_kl=None if np.isnan(expected) else expected / count,
            top1_agreement=agreement / count,
        )
