"""Decode the texts that a user gives."""

from __future__ import annotations

from yarn_gguf.errors import YarnGGUFError, not_utf8


def text_of(data: bytes, source: object) -> str:
    """Return `data`, which is from `source`, as text. Raises YarnGGUFError if it is blank or not UTF-8."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(source, error) from error
    if not text.strip():
        raise YarnGGUFError(f"{source} is empty: give a text")
    return text
