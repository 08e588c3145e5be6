"""The texts that a model is judged by, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yarn_gguf.errors import YarnGGUFError, not_utf8


@dataclass(frozen=True)
class Document:
    """tokens: int32."""

    name: str
    tokens: np.ndarray


def read_documents(model_path: str | Path, paths: Sequence[str | Path], length: int) -> list[Document]:
    """The first `length` tokens of each text.

    Raises YarnGGUFError for a text that is shorter, empty or no text, GGUFError, OSError.
    """
    from yarn_gguf.prompt import prompt_tokens  # loads the native library

    documents = []
    for path in map(Path, paths):
        tokens = prompt_tokens(model_path, read_text(path), chat=False)
        if len(tokens) < length:
            raise YarnGGUFError(
                f"{path} has {len(tokens):,} tokens, and {length:,} are wanted: give a longer text, or a "
                "smaller --context"
            )
        documents.append(Document(path.stem, np.array(tokens[:length], np.int32)))
    return documents


def read_text(path: Path) -> str:
    """A text file. Raises YarnGGUFError if it is empty or no UTF-8, OSError."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error
    if not text.strip():
        raise YarnGGUFError(f"{path} is empty: give a text")
    return text
