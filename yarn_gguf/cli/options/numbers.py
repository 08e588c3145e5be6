"""Numbers as values of options."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def positive(text: str) -> int:
    """Return a whole number > 0."""
    return _checked(int, text, lambda value: value > 0, "a whole number > 0")


def not_negative_number(text: str) -> float:
    """Return a number >= 0."""
    return _checked(float, text, lambda value: 0 <= value < math.inf, "a number >= 0")


def probability(text: str) -> float:
    """Return a number from 0 to 1."""
    return _checked(float, text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def positive_number(text: str) -> float:
    """Return a number > 0."""
    return _checked(float, text, lambda value: 0 < value < math.inf, "a number > 0")


def _checked(
    kind: Callable[[str], Number], text: str, is_right: Callable[[Number], bool], wanted: str
) -> Number:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not is_right(value):
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text}")
    return value
