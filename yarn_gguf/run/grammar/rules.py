"""The rules of a grammar in GBNF, and how characters are written in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

Range = tuple[int, int]  # of code points, both included

ROOT = "root"
MOST_REPETITIONS = 2000  # MAX_REPETITION_THRESHOLD in llama-grammar.cpp

# Characters that stand for themselves in a JSON string. Surrogates are no characters.
RAW: list[Range] = [(0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0xD7FF), (0xE000, 0x10FFFF)]
ESCAPES = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}

# One character of a JSON string. No escape is half a character.
CHAR = (
    r'[^\x00-\x1f"\\\x7f] | "\\" (["\\/bfnrt] | '
    r'"u" ([0-9a-cefA-CEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}))'
)


class Rules:
    """Rules by name. Equal bodies share a rule."""

    def __init__(self) -> None:
        self._bodies: dict[str, str] = {}
        self._names: dict[str, str] = {}  # by body

    def new_name(self, hint: str) -> str:
        """Return a name that no rule has, like `hint`."""
        stem = re.sub(r"[^a-zA-Z0-9]+", "-", hint).strip("-") or "rule"
        name, number = stem, 1
        while name == ROOT or name in self._bodies:
            number += 1
            name = f"{stem}-{number}"
        self._bodies[name] = ""
        return name

    def define(self, name: str, body: str) -> None:
        """Give a rule its body."""
        self._bodies[name] = body

    def add(self, hint: str, body: str) -> str:
        """Return the name of the rule with this body."""
        if body not in self._names:
            self._names[body] = self.new_name(hint)
            self.define(self._names[body], body)
        return self._names[body]

    def text(self) -> str:
        """Return the grammar."""
        return "".join(f"{name} ::= {body}\n" for name, body in self._bodies.items())


def literal(text: str) -> str:
    """Return a string of GBNF that is `text`."""
    return '"' + "".join(_escaped(ord(char)) for char in text) + '"'


def json_literal(value: Any) -> str:
    """Return a string of GBNF that is the JSON of `value`. Raises ValueError for what JSON has not."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text.encode()  # raises for half of a surrogate pair
    return literal(text)


def char_of(ranges: Iterable[Range]) -> str | None:
    """Return what matches one character of `ranges` in a JSON string; None if there is none.

    A control character without a short escape is left out.
    """
    ranges = [*ranges]
    parts = [f'"\\\\" {literal(short)}' for char, short in ESCAPES.items() if _has(ranges, ord(char))]
    if raw := intersection(ranges, RAW):
        parts.insert(0, "[" + "".join(_class_part(each) for each in raw) + "]")
    if not parts:
        return None
    return parts[0] if parts[0][0] == "[" and len(parts) == 1 else f"({' | '.join(parts)})"


def intersection(a: Iterable[Range], b: Iterable[Range]) -> list[Range]:
    """Return the code points in both."""
    b = [*b]
    found = [(max(i, k), min(j, m)) for i, j in a for k, m in b]
    return sorted({(low, high) for low, high in found if low <= high})


def complement(ranges: Iterable[Range]) -> list[Range]:
    """Return all other code points."""
    found, start = [], 0
    for low, high in sorted(ranges):
        if start < low:
            found.append((start, low - 1))
        start = max(start, high + 1)
    return [*found, (start, 0x10FFFF)] if start <= 0x10FFFF else found


# ----------------------------------------------------------------------------------------------


def _has(ranges: Iterable[Range], code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)


def _class_part(each: Range) -> str:
    low, high = each
    return _escaped(low) if low == high else f"{_escaped(low)}-{_escaped(high)}"


def _escaped(code: int) -> str:
    """Return a character as it stands in a string or a class of GBNF."""
    char = chr(code)
    if char in '"\\[]-':
        return f"\\{char}"
    if char.isascii() and (char.isalnum() or char in " _.,:;{}()/'<>=!@#%&*+?|~`$"):
        return char
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
