"""Numbers within bounds, as bodies of GBNF."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

_MOST_DIGITS = 18
_DECIMALS = 4  # of a number that has bounds

INTEGER = '"-"? ("0" | [1-9] [0-9]{0,15})'
NUMBER = f'{INTEGER} ("." [0-9]{{1,15}})? ([eE] [-+]? [0-9]{{1,2}})?'


@dataclass(frozen=True)
class Bounds:
    """The least and the greatest value, None where there is none; whether these are excluded."""

    low: Fraction | None = None
    high: Fraction | None = None
    excludes_low: bool = False
    excludes_high: bool = False

    @property
    def are_open(self) -> bool:
        """Whether every number is within."""
        return self.low is None and self.high is None

    def scaled(self, decimals: int) -> tuple[int, int]:
        """Return the least and the greatest n for which n / 10**decimals is within."""
        scale, most = 10**decimals, 10**_MOST_DIGITS - 1
        low, high = -most, most
        if self.low is not None:
            least = self.low * scale
            low = math.floor(least) + 1 if self.excludes_low else math.ceil(least)
        if self.high is not None:
            greatest = self.high * scale
            high = math.ceil(greatest) - 1 if self.excludes_high else math.floor(greatest)
        return max(low, -most), min(high, most)


def integers(bounds: Bounds) -> str | None:
    """Return a body for the integers within `bounds`, of up to 18 digits; None if there are none."""
    return INTEGER if bounds.are_open else _body(bounds, 0)


def numbers(bounds: Bounds) -> str | None:
    """Return a body for numbers within `bounds`, of up to 4 decimals; None if there are none."""
    if bounds.are_open:
        return NUMBER
    bodies = [_body(bounds, decimals) for decimals in range(_DECIMALS + 1)]
    return " | ".join(body for body in bodies if body) or None


# ----------------------------------------------------------------------------------------------


def _body(bounds: Bounds, decimals: int) -> str | None:
    low, high = bounds.scaled(decimals)
    parts = [_written(each, decimals) for each in _between(max(low, 0), high, decimals + 1)]
    parts += ['"-" ' + _written(each, decimals) for each in _between(max(-high, 1), -low, decimals + 1)]
    return " | ".join(parts) or None


def _between(low: int, high: int, width: int) -> Iterator[list[str]]:
    """Yield texts that together are the numbers from `low` to `high`, with zeros in front up to `width`.

    A text is a list of classes, one for each digit.
    """
    while low <= high:
        digits = max(width, len(str(low)))
        top = min(high, 10**digits - 1)
        yield from _of_equal_length(f"{low:0{digits}}", f"{top:0{digits}}")
        low = top + 1


def _of_equal_length(low: str, high: str) -> Iterator[list[str]]:
    if not low:
        yield []
        return
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    if first == last:
        yield from ([f"[{first}]", *each] for each in _of_equal_length(low[1:], high[1:]))
        return
    if low[1:] != "0" * rest:
        yield from ([f"[{first}]", *each] for each in _of_equal_length(low[1:], "9" * rest))
        first += 1
    is_whole = high[1:] == "9" * rest
    if first <= last - (not is_whole):
        yield [f"[{first}-{last - (not is_whole)}]"] + ["[0-9]"] * rest
    if not is_whole:
        yield from ([f"[{last}]", *each] for each in _of_equal_length("0" * rest, high[1:]))


def _written(classes: list[str], decimals: int) -> str:
    point = len(classes) - decimals
    return " ".join([*classes[:point], '"."', *classes[point:]] if decimals else classes)
