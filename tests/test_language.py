"""House rules of language that a program can check. docs/ has its own in test_docs.py."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("yarn_gguf", "convert", "tests", "benchmarks", "examples", "cpp_patches/tools")
HAS_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FIRST_WORD = re.compile(r"(Of|What|As|Those|That which)\b")
MOST_WORDS = 40  # of a sentence; the house aims at 20


def docstrings(folder: str) -> Iterator[tuple[str, str]]:
    """The place and the text of every docstring in a folder."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, HAS_DOCSTRING) and (text := ast.get_docstring(node)):
                line = node.body[0].lineno
                yield f"{path.relative_to(ROOT)}:{line}", text


def sentences(text: str) -> list[str]:
    """The sentences of a text: they end with a full stop, a colon, a semicolon, or a blank line.

    Indented lines are examples or tables, and left out.
    """
    prose = "\n".join("" if line.startswith("  ") else line for line in text.splitlines())
    return re.split(r"(?<=[.!?:;])\s+|\n\s*\n", prose)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_docstring_begins_with_a_verb_or_a_noun(folder: str) -> None:
    wrong = [
        f"{place}: {text.splitlines()[0]}" for place, text in docstrings(folder) if FIRST_WORD.match(text)
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_sentence_of_a_docstring_is_short(folder: str) -> None:
    wrong = [
        f"{place}: {sentence}"
        for place, text in docstrings(folder)
        for sentence in sentences(text)
        if len(sentence.split()) > MOST_WORDS
    ]
    assert wrong == []
