"""Scalings compared on the same texts, by a model that is loaded once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import yarn_gguf
from yarn_gguf import native
from yarn_gguf.evaluate.documents import Document
from yarn_gguf.evaluate.passkey import Style, found, trials
from yarn_gguf.evaluate.perplexity import Progress, token_losses, window_losses
from yarn_gguf.evaluate.results import Results
from yarn_gguf.evaluate.variant import Variant
from yarn_gguf.fingerprint import fingerprint

if TYPE_CHECKING:
    from yarn_gguf.llama import Llama

Label = Callable[[str], Progress]
_SETTINGS = ("n_ctx", "n_batch", "n_ubatch", "type_k", "type_v", "flash_attn_type")


def compare_losses(
    llama: Llama, variants: Sequence[Variant], documents: Sequence[Document], results: Results, label: Label
) -> dict[str, list[np.ndarray]]:
    """The losses of each document under each variant, by its name; see token_losses.

    What `results` has is not measured again. label(name): gives the progress of what is called so. The
    model is left under the last scaling. Raises RopeScalingError, YarnGGUFError, OSError.
    """
    return _compare(llama, variants, documents, results, label, {"kind": "losses"}, token_losses)


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
    """As compare_losses, by a sliding window; see window_losses."""

    def measure(llama: Llama, tokens: Sequence[int], progress: Progress) -> np.ndarray:
        return window_losses(llama, tokens, window, stride, parallel, progress)

    key = {"kind": "windows", "window": window, "stride": stride, "parallel": parallel}
    return _compare(llama, variants, documents, results, label, key, measure)


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
    base = model_key(llama) | {"kind": "passkey", **asdict(style), "seed": seed}
    asked = list(trials(llama, [length], depths, count, style, seed))
    cells = []
    for variant in variants:
        llama.set_rope_scaling(variant.scaling)
        report, scaling = label(f"{variant.name}, {length:,} tokens"), scaling_key(llama)
        answers = []
        for trial in asked:
            key = {**base, **scaling, "tokens": digest(trial.prompt)}
            answers.append(results.get(key, lambda trial=trial: found(llama, trial)))
            report(len(answers), len(asked))
        for i, depth in enumerate(depths):
            right = sum(answers[i * count : (i + 1) * count])
            cells.append(Cell(variant.name, length, depth, right, count))
    return cells


def model_key(llama: Llama) -> dict[str, Any]:
    """What a measurement on a model depends on, but for its scaling and the text."""
    settings = {name: getattr(llama.context_params, name) for name in _SETTINGS}
    library = [fingerprint(each) for each in sorted(native.library_folder().iterdir()) if each.is_file()]
    return {
        "model": llama.fingerprints,
        "version": yarn_gguf.__version__,
        "library": digest_of(library),
        "n_gpu_layers": llama.model_params.n_gpu_layers,
        **settings,
    }


def scaling_key(llama: Llama) -> dict[str, Any]:
    """The scaling in force, as part of a key."""
    return {"scaling": {"kind": type(llama.rope_scaling).__name__, **asdict(llama.rope_scaling)}}


def digest(tokens: Sequence[int]) -> str:
    """What stands for a text in a key."""
    return hashlib.sha256(np.asarray(tokens, np.int32).tobytes()).hexdigest()


def digest_of(texts: Sequence[str]) -> str:
    """One for several."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


# ----------------------------------------------------------------------------------------------


def _compare(
    llama: Llama,
    variants: Sequence[Variant],
    documents: Sequence[Document],
    results: Results,
    label: Label,
    key: dict[str, Any],
    measure: Callable[[Llama, Sequence[int], Progress], np.ndarray],
) -> dict[str, list[np.ndarray]]:
    base = model_key(llama) | key
    losses: dict[str, list[np.ndarray]] = {}
    for variant in variants:
        llama.set_rope_scaling(variant.scaling)
        scaling = scaling_key(llama)
        losses[variant.name] = [
            np.array(
                results.get(
                    {**base, **scaling, "tokens": digest(each.tokens)},
                    lambda each=each, name=variant.name: [
                        round(loss, 6)
                        for loss in measure(
                            llama, each.tokens.tolist(), label(f"{name}, {each.name}")
                        ).tolist()
                    ],
                )
            )
            for each in documents
        ]
    return losses
