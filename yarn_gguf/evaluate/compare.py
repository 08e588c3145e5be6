"""Scalings compared on the same texts, by a model that is loaded once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from yarn_gguf import _version
from yarn_gguf.disk import fingerprint
from yarn_gguf.evaluate.passkey import Style, answer, is_right, trials
from yarn_gguf.evaluate.reading.documents import Document
from yarn_gguf.evaluate.reading.losses import token_losses, window_ends, window_losses
from yarn_gguf.evaluate.results import Results
from yarn_gguf.native.library import library_folder
from yarn_gguf.progress import Progress
from yarn_gguf.rope.names import Variant, as_json

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama

Label = Callable[[str], Progress]
_SETTINGS = ("n_ctx", "n_batch", "n_ubatch", "type_k", "type_v", "flash_attn_type")
_AT_ONCE = 64  # windows that are kept as one measurement


def compare_losses(
    llama: Llama, variants: Sequence[Variant], documents: Sequence[Document], results: Results, label: Label
) -> dict[str, list[np.ndarray]]:
    """The losses of each document under each variant, by its name; see token_losses.

    What `results` has is not measured again. label(name): gives the progress of what is called so. The
    model is left under the last scaling. Raises RopeScalingError, YarnGGUFError, OSError.
    """
    model = model_key(llama, results) | {"kind": "losses"}

    def measure(document: Document, key: dict[str, Any], progress: Progress) -> list[float]:
        return results.get(key, lambda: _rounded(token_losses(llama, document.tokens.tolist(), progress)))

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
    """As compare_losses, by a sliding window; see window_losses. Kept are some windows at a time."""
    ends = window_ends(min(len(each.tokens) for each in documents), window, stride)
    settings = {"kind": "windows", "window": window, "stride": stride, "parallel": parallel}
    model = model_key(llama, results) | settings

    def measure(document: Document, key: dict[str, Any], progress: Progress) -> list[float]:
        tokens, losses = document.tokens.tolist(), []
        group = parallel * max(1, _AT_ONCE // parallel)
        for start in range(0, len(ends), group):
            some = ends[start : start + group]
            losses += results.get(
                key | {"ends": [some.start, some.stop]},
                lambda some=some, start=start: _rounded(
                    window_losses(
                        llama,
                        tokens,
                        window,
                        some,
                        parallel,
                        lambda done, _: progress(start + done, len(ends)),
                    )
                ),
            )
        return losses

    return _compare(llama, variants, documents, model, label, measure)


@dataclass(frozen=True)
class Cell:
    """Pass keys that were found under a scaling, in prompts of `length` tokens, at `depth` from 0 to 1."""

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
    """`count` trials at each depth under each variant; see passkey.trials. Otherwise as compare_losses."""
    require_scalings(llama, variants)
    base = model_key(llama, results) | {"kind": "passkey answer"}
    asked = list(trials(llama, [length], depths, count, style, seed))
    cells = []
    for variant in variants:
        llama.set_rope_scaling(variant.scaling)
        report, scaling = label(f"{variant.name}, {length:,} tokens"), scaling_key(llama)
        right = []
        for trial in asked:
            key = {**base, **scaling, "tokens": fingerprint.token_digest(trial.prompt)}
            said = results.get(key, lambda trial=trial: answer(llama, trial.prompt))
            right.append(is_right(said, trial.key))
            report(len(right), len(asked))
        for i, depth in enumerate(depths):
            here = sum(right[i * count : (i + 1) * count])
            cells.append(Cell(variant.name, length, depth, here, count))
    return cells


def require_scalings(llama: Llama, variants: Sequence[Variant]) -> None:
    """Before anything is measured: raises RopeScalingError for one that the model cannot have."""
    for variant in variants:
        llama.set_rope_scaling(variant.scaling)


def model_key(llama: Llama, results: Results) -> dict[str, Any]:
    """What a measurement on a model depends on, but for its scaling and the text; nothing if none is kept."""
    if results.folder is None:
        return {}
    settings = {name: getattr(llama.context_params, name) for name in _SETTINGS}
    library = [fingerprint.digest(each) for each in sorted(library_folder().iterdir()) if each.is_file()]
    return {
        "model": fingerprint.digests(llama.model_path),
        "version": _version.__version__,
        "library": digest_of(library),
        "n_gpu_layers": llama.model_params.n_gpu_layers,
        **settings,
    }


def scaling_key(llama: Llama) -> dict[str, Any]:
    """The scaling in force, as part of a key."""
    return {"scaling": as_json(llama.rope_scaling)}


def digest_of(texts: Sequence[str]) -> str:
    """One for several."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


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
            text = key | {"tokens": fingerprint.token_digest(each.tokens)}
            measured = measure(each, text, label(f"{variant.name}, {each.name}"))
            losses[variant.name].append(np.array(measured))
    return losses


def _rounded(losses: np.ndarray) -> list[float]:
    return [round(loss, 6) for loss in losses.tolist()]
