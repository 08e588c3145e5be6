"""The pages of the documentation, taken apart: prose, pieces of code, inline code and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from libraries import ROOT

_FENCE = re.compile(r"```(\w*)")
_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->")
_LIST_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.) ")
_LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")
_INLINE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A piece of code. language: "" if it is indented. comment: the text of the HTML comment before it."""

    line: int
    language: str
    text: str
    comment: str


@dataclass(frozen=True)
class Line:
    """A line outside code. kind: "prose", "heading" or "table"."""

    number: int
    kind: str
    text: str


class Page:
    """A Markdown file of the repository. Lines that are indented by four spaces are code."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.relative_to(ROOT).as_posix()
        self.text = path.read_text(encoding="utf-8")

    @cached_property
    def parts(self) -> list[Block | Line]:
        """The blocks and the lines of the page, in order. Empty lines are prose."""
        found: list[Block | Line] = []
        code: list[str] = []
        start, language, comment, is_fenced = 0, "", "", False
        for number, line in enumerate([*self.text.splitlines(), ""], 1):
            is_indented = line.startswith("    ") or (bool(code) and not is_fenced and not line.strip())
            fence = _FENCE.match(line)
            if is_fenced and not fence:
                code.append(line)
            elif not is_fenced and not fence and is_indented:
                start = start if code else number
                code.append(line[4:])
            else:
                if code or is_fenced:
                    found.append(Block(start, language, "\n".join(code), comment))
                    code, language, comment = [], "", ""
                was_fenced, is_fenced = is_fenced, bool(fence) and not is_fenced
                if is_fenced and fence:
                    start, language = number, fence[1]
                elif not was_fenced:
                    if match := _COMMENT.fullmatch(line.strip()):
                        comment = match[1]
                        line = ""
                    elif line.strip():
                        comment = ""
                    found.append(Line(number, _kind(line), line))
        return found

    @property
    def blocks(self) -> list[Block]:
        """The pieces of code."""
        return [part for part in self.parts if isinstance(part, Block)]

    @property
    def lines(self) -> list[Line]:
        """The lines outside code."""
        return [part for part in self.parts if isinstance(part, Line)]

    @property
    def headings(self) -> list[str]:
        """The headings with their marks, such as "## Use it"."""
        return [line.text for line in self.lines if line.kind == "heading"]

    @property
    def inline(self) -> list[str]:
        """The pieces of inline code; a line break in one is a space."""
        text = "\n".join(line.text for line in self.lines)
        return [" ".join(piece.split()) for piece in _INLINE.findall(text)]

    @property
    def links(self) -> list[str]:
        """The targets of the links and pictures outside code."""
        return [link[2] for line in self.lines for link in _LINK.finditer(_INLINE.sub("", line.text))]

    def sentences(self) -> Iterator[tuple[int, str]]:
        """Yield each sentence of the prose with the line on which its paragraph begins.

        Inline code counts as one word, and a link as its text.
        """
        for number, paragraph in self._paragraphs():
            text = _INLINE.sub("CODE", _LINK.sub(r"\1", paragraph)).replace("**", "")
            for sentence in re.split(r"(?<=[.!?])\)?\s+(?=[\"(]?[A-Z0-9])", text):
                yield number, sentence.strip()

    def _paragraphs(self) -> Iterator[tuple[int, str]]:
        start, text = 0, ""
        for part in [*self.parts, Line(0, "heading", "")]:
            line = part.text if isinstance(part, Line) and part.kind == "prose" else ""
            is_item = bool(_LIST_ITEM.match(line))
            if text and (is_item or not line.strip()):
                yield start, text
                text = ""
            if line.strip():
                start = start if text else (part.number if isinstance(part, Line) else 0)
                text = f"{text} {_LIST_ITEM.sub('', line, count=1).strip()}".strip()


def _kind(line: str) -> str:
    return {"#": "heading", "|": "table"}.get(line[:1], "prose")


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    words = _INLINE.sub(r"\1", _LINK.sub(r"\1", heading.lstrip("# "))).lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
