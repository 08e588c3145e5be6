"""Types of argparse for sizes in bytes."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from yarn_gguf.disk.sizes import parse_binary_size, parse_decimal_size
from yarn_gguf.errors import YarnGGUFError


def binary_size(text: str) -> int:
    """Return the bytes of a text such as "24G", in powers of 1024."""
    return _parsed(parse_binary_size, text)


def decimal_size(text: str) -> int:
    """Return the bytes of a text such as "2G", in powers of 1000."""
    return _parsed(parse_decimal_size, text)


def _parsed(parse: Callable[[str], int], text: str) -> int:
    try:
        return parse(text)
    except YarnGGUFError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
