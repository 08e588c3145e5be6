"""Merge a LoRA adapter into the weights of its base model, row by row as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import replace
from typing import TypeVar

import numpy as np

from yarn_gguf.convert.checkpoint import Checkpoint
from yarn_gguf.convert.lora.adapter import Adapter, LowRank
from yarn_gguf.convert.tensor import Tensor
from yarn_gguf.convert.text_part import text_name
from yarn_gguf.convert.tied import EMBEDDINGS, HEAD
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config

_Value = TypeVar("_Value")


def merged(checkpoint: Checkpoint, adapter: Adapter, has_tokenizer: bool) -> Checkpoint:
    """Return the checkpoint with the adapter's changes, in float32.

    has_tokenizer: whether the adapter has a tokenizer of its own, which may have more tokens.
    Raises ConversionError if the adapter does not fit the checkpoint.
    """
    config = checkpoint.config
    adapter = of_text_model(adapter, config)
    tensors, weights = dict(checkpoint.tensors), adapter.copies | adapter.weights
    changed = weights.keys() | adapter.changes.keys()
    if HEAD not in tensors and EMBEDDINGS in tensors and _unties(adapter, changed):
        tensors[HEAD] = tensors[EMBEDDINGS]
        config = config.with_values(tie_word_embeddings=False)
    _check_known(adapter, changed, tensors)
    grown = _grown_vocabulary(adapter, weights, tensors, has_tokenizer)
    for name, weight in weights.items():
        rows = grown if grown and name in (EMBEDDINGS, HEAD) else tensors[name].shape[0]
        if name == EMBEDDINGS:
            weight = _first_rows(weight, rows)
        if weight.shape != (rows, *tensors[name].shape[1:]):
            raise _misfit(adapter, name, weight.shape, tensors[name])
        tensors[name] = weight
    for name, change in adapter.changes.items():
        if change.shape != tensors[name].shape:
            raise _misfit(adapter, name, change.shape, tensors[name])
        tensors[name] = _changed(tensors[name], change)
    if grown:
        config = config.with_values(vocab_size=grown)
    return Checkpoint(config, tensors)


def of_text_model(adapter: Adapter, base: Config) -> Adapter:
    """Return the adapter by the names of the text model's tensors, without what changes other parts.

    base: the base model's config.json.
    """
    if not base.around or not any(map(text_name, adapter.changes | adapter.weights)):
        return adapter  # trained on a text model alone
    return replace(
        adapter,
        changes=_text_part(adapter.changes),
        weights=_text_part(adapter.weights),
        copies=_text_part(adapter.copies),
    )


# ----------------------------------------------------------------------------------------------


def _text_part(values: dict[str, _Value]) -> dict[str, _Value]:
    return {text_name(name): value for name, value in values.items() if text_name(name)}


def _unties(adapter: Adapter, changed: Set[str]) -> bool:
    """Return whether the adapter parts embeddings and output projection of a model that ties them.

    PEFT changes the one that it is told to, and leaves the other as it was.
    """
    return HEAD in changed or (
        EMBEDDINGS in changed and not adapter.config.values.get("ensure_weight_tying", False)
    )


def _check_known(adapter: Adapter, names: Iterable[str], tensors: dict[str, Tensor]) -> None:
    for name in sorted(names):
        if name not in tensors:
            raise ConversionError(
                f"{adapter.folder}: the adapter changes {name}, which the base model does not have: is it "
                f"the adapter of {adapter.config.values.get('base_model_name_or_path')!r}?"
            )


def _misfit(adapter: Adapter, name: str, shape: tuple[int, ...], base: Tensor) -> ConversionError:
    return ConversionError(
        f"{adapter.folder}: the adapter's {name} is {shape}, and the base model's {base.shape}: is it the "
        f"adapter of {adapter.config.values.get('base_model_name_or_path')!r}?"
    )


def _grown_vocabulary(
    adapter: Adapter, weights: dict[str, Tensor], tensors: dict[str, Tensor], has_tokenizer: bool
) -> int:
    """Return the new number of tokens; 0 if the base model's stays.

    It grows if the adapter has the embeddings and the output projection of added tokens. If it has the
    embeddings alone, like LongLoRA's, and no tokenizer, then no text gives the added tokens: they are cut
    off.
    """
    if EMBEDDINGS not in weights or weights[EMBEDDINGS].shape == tensors[EMBEDDINGS].shape:
        return 0
    rows, width = weights[EMBEDDINGS].shape
    old_rows, old_width = tensors[EMBEDDINGS].shape
    head = weights.get(HEAD)
    if width != old_width or rows < old_rows or (has_tokenizer and not head):
        raise _misfit(adapter, EMBEDDINGS, (rows, width), tensors[EMBEDDINGS])
    return rows if head else 0


def _first_rows(tensor: Tensor, count: int) -> Tensor:
    return tensor if tensor.shape[0] == count else replace(tensor, shape=(count, *tensor.shape[1:]))


def _changed(base: Tensor, change: LowRank) -> Tensor:
    """Return a weight after its change."""

    def read(start: int, stop: int) -> np.ndarray:
        scale = np.float32(change.scale)
        if change.transposed:
            delta = scale * (change.a.load()[:, start:stop].T @ change.b.load().T)
        else:
            delta = scale * (change.b.read(start, stop) @ change.a.load())
        rows = base.read(start, stop) + delta
        if change.magnitude is not None:
            rows *= change.magnitude.read(start, stop)[:, None] / np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    return Tensor(base.shape, read, base.unit)
