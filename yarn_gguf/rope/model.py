"""Plain data about a model's rotary embedding, from its file's header."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yarn_gguf.gguf.header import Header, ValueType

MAX_DIMENSIONS = 1 << 16  # of a head; a larger number means damage


@dataclass(frozen=True)
class RotaryEmbedding:
    """A model's rotary embedding before any scaling.

    arch: the architecture, which is the prefix of the model's keys.
    dim: rotary dimensions of a head.
    rope_theta: the base that the model was trained with.
    """

    arch: str
    dim: int
    rope_theta: float

    def key(self, suffix: str) -> str:
        """Return the full name of a key of this architecture."""
        return f"{self.arch}.{suffix}"


@dataclass(frozen=True)
class StoredRope(RotaryEmbedding):
    """The rotary embedding in a file, and the file's header.

    context_length: tokens that the file claims.
    original_context: tokens that the model was trained with; context_length if the file does not say.
    """

    path: Path
    context_length: int
    original_context: int
    header: Header = field(repr=False)

    @property
    def is_finetuned(self) -> bool:
        """Whether the model was trained further under the file's scaling."""
        return self.get("rope.scaling.finetuned", ValueType.BOOL, False)

    def get(self, suffix: str, type_: ValueType, default: Any = None) -> Any:
        """Return the value of a key of this architecture; see Header.get."""
        return self.header.get(self.key(suffix), type_, default)

    def has(self, suffix: str) -> bool:
        """Return whether the file has a key of this architecture."""
        return self.key(suffix) in self.header.entries
