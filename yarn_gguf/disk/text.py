"""Texts that people give."""

from __future__ import annotations

from yarn_gguf.errors import YarnGGUFError, not_utf8


def text_of(data: bytes, source: object) -> str:
    """What `source` holds. Raises YarnGGUFError if that is empty or no UTF-8."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(source, error) from error
    if not text.strip():
        raise YarnGGUFError(f"{source} is empty: give a text")
    return text
