"""A regular expression of a JSON schema (ECMA 262), as a body of GBNF for the text within a JSON string.

Dialects differ in what \\d, \\s and a dot match beyond ASCII. What is generated matches in each of them.
"""

from __future__ import annotations

import re

from yarn_gguf.run.grammar.rules import MOST_REPETITIONS, Range, Rules, char_of, complement, intersection

_ASCII: list[Range] = [(0, 0x7F)]
_SHORT: dict[str, list[Range]] = {
    "d": [(0x30, 0x39)],
    "w": [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    "s": [(0x09, 0x0A), (0x0C, 0x0D), (0x20, 0x20)],
}
_SHORT |= {
    name.upper(): intersection(complement([*ranges, (0x0B, 0x0B), (0x1C, 0x1F)]), _ASCII)
    for name, ranges in _SHORT.items()
}
_CONTROLS = {"t": 0x09, "n": 0x0A, "r": 0x0D, "f": 0x0C}
_DOT = complement([(0x0A, 0x0D), (0x85, 0x85), (0x2028, 0x2029)])
_QUANTIFIER = re.compile(r"([*+?]|\{\d+(?:,\d*)?\})(\??)")


def pattern_body(pattern: str, rules: Rules, any_char: str) -> str:
    """Return the body for strings in which `pattern` is found, from quote to quote without these.

    any_char: the rule of a string's character. Raises ValueError with a reason.
    """
    parser = _Parser(pattern, rules, any_char)
    return parser.whole()


class _Parser:
    """A parser by recursive descent. `_at` is the place of the next character."""

    def __init__(self, pattern: str, rules: Rules, any_char: str) -> None:
        self._pattern, self._rules, self._any_char = pattern, rules, any_char
        self._at = 0

    def whole(self) -> str:
        body = self._alternatives(is_outer=True)
        if self._at < len(self._pattern):
            raise self._refusal("a ) without its (")
        return body

    def _alternatives(self, *, is_outer: bool = False) -> str:
        found = [self._sequence(is_outer)]
        while self._skip("|"):
            found.append(self._sequence(is_outer))
        return " | ".join(found)

    def _sequence(self, is_outer: bool) -> str:
        """Return one alternative. An outer one without an anchor goes on to the string's end."""
        parts = []
        is_begun = is_outer and self._skip("^")
        is_ended = False
        while self._at < len(self._pattern) and self._next not in "|)":
            if is_outer and self._skip("$"):
                is_ended = True
                if self._at < len(self._pattern) and self._next != "|":
                    raise self._refusal("a $ before the end")
                break
            parts.append(self._quantified(self._atom()))
        if is_outer:
            before = [] if is_begun else [f"{self._any_char}*"]
            after = [] if is_ended else [f"{self._any_char}*"]
            parts = [*before, *parts, *after]
        return " ".join(parts) or '""'

    @property
    def _next(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _skip(self, char: str) -> bool:
        if self._next != char:
            return False
        self._at += 1
        return True

    def _refusal(self, what: str) -> ValueError:
        return ValueError(f"{what} at place {self._at} of {self._pattern!r}")

    def _atom(self) -> str:
        char = self._next
        if char in "^$*+?{":
            raise self._refusal(f"{char!r}, which cannot be translated")
        self._at += 1
        if char == "(":
            return self._group()
        if char == "[":
            return self._class()
        if char == ".":
            return self._char(_DOT)
        return self._char(self._escape() if char == "\\" else [(ord(char), ord(char))])

    def _group(self) -> str:
        if self._skip("?") and not self._skip(":"):
            raise self._refusal("a group of another kind than (...) or (?:...)")
        body = self._alternatives()
        if not self._skip(")"):
            raise self._refusal("a ( without its )")
        return self._rules.add("group", body)

    def _quantified(self, atom: str) -> str:
        found = _QUANTIFIER.match(self._pattern, self._at)
        if found is None:
            return atom
        quantifier = found[1]
        counts = [int(each) for each in re.findall(r"\d+", quantifier)]
        if max(counts, default=0) > MOST_REPETITIONS or counts != sorted(counts):
            raise self._refusal(f"{quantifier}: counts rise, and are at most {MOST_REPETITIONS:,},")
        self._at = found.end()
        if self._next and self._next in "*+?":
            raise self._refusal("a second quantifier")
        return self._rules.add("part", atom) + quantifier

    def _char(self, ranges: list[Range]) -> str:
        found = char_of(ranges)
        if found is None:
            raise self._refusal("a character that cannot stand in a JSON string")
        return found

    def _escape(self) -> list[Range]:
        char = self._next
        self._at += 1
        if char in _SHORT and char:
            return _SHORT[char]
        if char in ("x", "u"):
            digits = {"x": 2, "u": 4}[char]
            found = re.compile(f"[0-9a-fA-F]{{{digits}}}").match(self._pattern, self._at)
            if found:
                self._at += digits
                return [(int(found[0], 16), int(found[0], 16))]
        code = _CONTROLS.get(char) or (ord(char) if char and not char.isalnum() else None)
        if code is None:
            raise self._refusal(f"\\{char}, which cannot be translated,")
        return [(code, code)]

    def _class(self) -> str:
        is_negated = self._skip("^")
        if self._next == "]":
            raise self._refusal("an empty class, which dialects understand differently,")
        found: list[Range] = []
        has_short = False
        while not self._skip("]"):
            item = self._class_item()
            has_short = has_short or len(item) > 1 or item[0][0] != item[0][1]
            if self._next == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                end = self._class_item()
                if len(item) > 1 or len(end) > 1 or not item[0][0] == item[0][1] <= end[0][0] == end[0][1]:
                    raise self._refusal("a range that does not rise from character to character")
                item = [(item[0][0], end[0][0])]
            found += item
        if is_negated:
            found = intersection(complement(found), _ASCII) if has_short else complement(found)
        return self._char(found)

    def _class_item(self) -> list[Range]:
        char = self._next
        if not char:
            raise self._refusal("a [ without its ]")
        if char == "[":
            raise self._refusal("a [ in a class, which dialects understand differently: write \\[")
        self._at += 1
        return self._escape() if char == "\\" else [(ord(char), ord(char))]
