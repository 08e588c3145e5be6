"""The texts that a model is evaluated on, as tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yarn_gguf.disk.text import text_of
from yarn_gguf.errors import YarnGGUFError


@dataclass(frozen=True)
class Document:
    """A text, or a part of one, as tokens (int32)."""

    name: str
    tokens: np.ndarray


def read_documents(model_path: str | Path, paths: Sequence[str | Path], length: int) -> list[Document]:
    """Return the first `length` tokens of each text.

    Raises YarnGGUFError for a text that is shorter, empty, not UTF-8 or given twice; GGUFError, OSError.
    """
    return _require_distinct(
        [
            Document(Path(path).stem, np.array(_tokens(model_path, Path(path), length)[:length], np.int32))
            for path in paths
        ]
    )


def read_pieces(model_path: str | Path, paths: Sequence[str | Path], length: int) -> list[Document]:
    """Cut each text into documents of `length` tokens: the first of every text, then the second of each, ….

    A shorter rest at a text's end is dropped. Each document begins with the BOS token, if the model has one.
    Raises the errors of read_documents.
    """
    from yarn_gguf.run.prompt import text_tokens

    bos = text_tokens(model_path, "")[:1]
    texts = []
    for path in map(Path, paths):
        tokens, step = _tokens(model_path, path, length)[len(bos) :], length - len(bos)
        pieces = [bos + tokens[i : i + step] for i in range(0, len(tokens) - step + 1, step)]
        names = [path.stem, *(f"{path.stem}, part {number}" for number in range(2, len(pieces) + 1))]
        texts.append([Document(*each) for each in zip(names, np.array(pieces, np.int32), strict=True)])
    turns = itertools.zip_longest(*texts)
    return _require_distinct([each for documents in turns for each in documents if each is not None])


def read_text(path: Path) -> str:
    """Return the text in a file with Unix line ends. Raises YarnGGUFError if empty or not UTF-8, OSError."""
    text = text_of(path.read_bytes(), path)
    return text.replace("\r\n", "\n").replace("\r", "\n")


# ----------------------------------------------------------------------------------------------


def _require_distinct(documents: list[Document]) -> list[Document]:
    """Return the documents. Raises YarnGGUFError for two with the same tokens, which would count twice."""
    seen: dict[bytes, Document] = {}
    for each in documents:
        other = seen.setdefault(each.tokens.tobytes(), each)
        if other is not each:
            raise YarnGGUFError(
                f"{other.name} and {each.name}: the same {len(each.tokens):,} tokens: give a text once"
            )
    return documents


def _tokens(model_path: str | Path, path: Path, length: int) -> list[int]:
    from yarn_gguf.run.prompt import text_tokens  # loads the native library

    tokens = text_tokens(model_path, read_text(path))
    if len(tokens) < length:
        raise YarnGGUFError(
            f"{path} has {len(tokens):,} tokens, and {length:,} are wanted: give a longer text, or a "
            "smaller --context"
        )
    return tokens
