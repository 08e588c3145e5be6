"""Scalings compared on the same texts, by a model that is loaded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from yarn_gguf.disk.fingerprint import token_digest
from yarn_gguf.evaluate.passkey import Style, answer, is_right, trials
from yarn_gguf.evaluate.reading.documents import Document
from yarn_gguf.evaluate.reading.losses import token_losses, window_ends, window_losses
from yarn_gguf.evaluate.results import Results, model_key, scaling_key
from yarn_gguf.progress import Progress
from yarn_gguf.rope.names import Variant

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama

Label = Callable[[str], Progress]  # label(name) returns the progress of the measurement with this name
_WINDOWS_KEPT = 64  # windows that are kept as one measurement


def compare_losses(
    llama: Llama, variants: Sequence[Variant], documents: Sequence[Document], results: Results, label: Label
) -> dict[str, list[np.ndarray]]:
    """Return the losses of each document under each variant, by the variant's name; see token_losses.

    A measurement that `results` has is not repeated. The model keeps the last scaling. Raises
    RopeScalingError, YarnGGUFError, OSError.
    """
    model = model_key(llama, results) | {"kind": "losses"}

    def read(tokens: list[int], progress: Progress) -> list[float]:
        return _rounded(token_losses(llama, tokens, progress))

    def measure(document: Document, key: dict[str, Any], progress: Progress) -> list[float]:
        return results.get(key, partial(read, document.tokens.tolist(), progress))

    return _compare(llama, variants, documents, model, label, measure)


def compare_windows(
    llama: Llama,
    variants: Sequence[Variant],
    documents: Sequence[Document],
    results: Results,
    label: Label,
    *,
    window: int,
    stride: int = 256,
    parallel: int = 1,
) -> dict[str, list[np.ndarray]]:
    """Return the losses by a sliding window; see compare_losses and window_losses.

    A measurement that is kept holds a few windows, so an interrupted run continues within a text.
    """
    ends = window_ends(min(len(each.tokens) for each in documents), window, stride)
    settings = {"kind": "windows", "window": window, "stride": stride, "parallel": parallel}
    model = model_key(llama, results) | settings

    def read(tokens: list[int], some: range, progress: Progress) -> list[float]:
        return _rounded(window_losses(llama, tokens, window, some, parallel, progress))

    def measure(document: Document, key: dict[str, Any], progress: Progress) -> list[float]:
        tokens: list[int] = document.tokens.tolist()
        losses: list[float] = []
        group = parallel * max(1, _WINDOWS_KEPT // parallel)
        for start in range(0, len(ends), group):
            some = ends[start : start + group]
            of_part = partial(_report_part, progress, start, len(ends))
            whole_key = key | {"ends": [some.start, some.stop]}
            losses += results.get(whole_key, partial(read, tokens, some, of_part))
        return losses

    return _compare(llama, variants, documents, model, label, measure)


@dataclass(frozen=True)
class Cell:
    """The number of pass keys found under a scaling, in prompts of `length` tokens, at `depth` (0 to 1)."""

    scaling: str
    length: int
    depth: float
    found: int
    trials: int


def compare_passkey(
    llama: Llama,
    variants: Sequence[Variant],
    length: int,
    depths: Sequence[float],
    count: int,
    style: Style,
    seed: int,
    results: Results,
    label: Label,
) -> list[Cell]:
    """Run `count` trials at each depth under each variant; see passkey.trials and compare_losses."""
    require_scalings(llama, variants)
    base = model_key(llama, results) | {"kind": "passkey answer"}
    asked = list(trials(llama, [length], depths, count, style, seed))
    cells = []
    for variant in variants:
        llama.set_rope_scaling(variant.scaling)
        report, scaling = label(f"{variant.name}, {length:,} tokens"), scaling_key(llama)
        right: list[bool] = []
        for trial in asked:
            key = {**base, **scaling, "tokens": token_digest(trial.prompt)}
            right.append(is_right(results.get(key, partial(answer, llama, trial.prompt)), trial.key))
            report(len(right), len(asked))
        for i, depth in enumerate(depths):
            found = sum(right[i * count : (i + 1) * count])
            cells.append(Cell(variant.name, length, depth, found, count))
    return cells


def require_scalings(llama: Llama, variants: Sequence[Variant]) -> None:
    """Raise RopeScalingError, before anything is measured, for a scaling that the model cannot have."""
    for variant in variants:
        llama.set_rope_scaling(variant.scaling)


# ----------------------------------------------------------------------------------------------


def _compare(
    llama: Llama,
    variants: Sequence[Variant],
    documents: Sequence[Document],
    model: dict[str, Any],
    label: Label,
    measure: Callable[[Document, dict[str, Any], Progress], list[float]],
) -> dict[str, list[np.ndarray]]:
    require_scalings(llama, variants)
    losses: dict[str, list[np.ndarray]] = {}
    for variant in variants:
        llama.set_rope_scaling(variant.scaling)
        key = model | scaling_key(llama)
        losses[variant.name] = []
        for each in documents:
            measured = measure(
                each, key | {"tokens": token_digest(each.tokens)}, label(f"{variant.name}, {each.name}")
            )
            losses[variant.name].append(np.array(measured))
    return losses


def _report_part(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    """Report the progress of a part that begins after `before` of `total`."""
    progress(before + done, total)


def _rounded(losses: np.ndarray) -> list[float]:
    return [round(loss, 6) for loss in losses.tolist()]
