"""The output layer of a checkpoint: its own, or the embedding. transformers 5.23 loads it in the same way."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from yarn_gguf.convert.tensor import Tensor, equal
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config

_log = logging.getLogger(__name__)
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
_HEAD_OF = {EMBEDDINGS: HEAD, "gpt_neox.embed_in.weight": "embed_out.weight"}


@dataclass(frozen=True)
class OutputLayer:
    """How llama.cpp finds the output layer of an architecture.

    is_read: it reads output.weight. is_needed: it does not take the embedding if that is missing.
    """

    is_read: bool
    is_needed: bool


def resolve_tie(tensors: dict[str, Tensor], config: Config, output: OutputLayer) -> dict[str, Tensor]:
    """Return the tensors with the output layer that transformers computes with.

    One that is the embedding is left out where llama.cpp takes the embedding itself. One that differs is
    kept, with a warning if `tie_word_embeddings` is true.

    Raises ConversionError if there is none and none is tied, or if llama.cpp would not read it.
    """
    embedding, head = _names(tensors)
    is_tied = bool(config.values.get("tie_word_embeddings"))
    if embedding not in tensors and not (is_tied and head in tensors):
        return tensors  # the library says what is missing
    if head not in tensors and not is_tied:
        raise ConversionError(
            f"{config.path.parent}: no {head}, and tie_word_embeddings in {config.path.name} is not true: "
            "set it to true if the output layer is the embedding; otherwise the checkpoint is not whole"
        )
    if (is_tied or not output.is_read) and not _differ(tensors, embedding, head):
        one = tensors.get(embedding) or tensors[head]  # a tied weight may be saved under either name
        others = {name: each for name, each in tensors.items() if name not in (embedding, head)}
        return others | ({embedding: one, head: one} if output.is_needed else {embedding: one})
    if not output.is_read:
        raise ConversionError(
            f"{config.path.parent}: {head} differs from {embedding}, and llama.cpp has no output layer of "
            f"its own for {config.values['model_type']} models: run this checkpoint with transformers"
        )
    if is_tied:
        _log.warning(
            f"{config.path}: tie_word_embeddings is true, but {head} differs from {embedding}: it is kept, "
            "as transformers 5 does; set tie_word_embeddings to false"
        )
    return tensors


# ----------------------------------------------------------------------------------------------


def _names(tensors: dict[str, Tensor]) -> tuple[str, str]:
    """Return the names of the embedding and of the output layer, as this checkpoint has them."""
    there = (pair for pair in _HEAD_OF.items() if not tensors.keys().isdisjoint(pair))
    return next(there, (EMBEDDINGS, HEAD))


def _differ(tensors: dict[str, Tensor], embedding: str, head: str) -> bool:
    """Return whether both tensors are there and have different values."""
    if head not in tensors or embedding not in tensors:
        return False
    return not equal(tensors[head], tensors[embedding])
