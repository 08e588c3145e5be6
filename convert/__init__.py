"""Converters from Hugging Face checkpoints to GGUF, installed as yarn_gguf.convert."""

from typing import TYPE_CHECKING

from yarn_gguf.convert.types import TYPES

if TYPE_CHECKING:
    from yarn_gguf.convert.hf_to_gguf import convert

__all__ = ["TYPES", "convert"]


def __getattr__(name: str) -> object:
    if name == "convert":  # the gguf package is loaded at the first use
        from yarn_gguf.convert.hf_to_gguf import convert

        return convert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
