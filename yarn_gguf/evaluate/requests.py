"""Requests for log-likelihoods from files: the questions of a benchmark, with the examples before them.

The format is that of OLMES and oe-eval: JSON lines, plain or compressed by gzip, with a line for each choice.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarn_gguf.errors import YarnGGUFError

_UNCONDITIONED = 1_000_000  # from this doc_id on, the choices are repeated without their question


@dataclass(frozen=True)
class Question:
    """A question. choices: a context and its continuation each. label: the index of the right choice."""

    choices: tuple[tuple[str, str], ...]
    label: int


@dataclass(frozen=True)
class Task:
    name: str
    questions: tuple[Question, ...]


def read_tasks(path: Path, limit: int | None = None) -> list[Task]:
    """Return the task in a file, or in each file NAME.jsonl or NAME.jsonl.gz of a folder and its subfolders.

    limit: the number of questions of each task, drawn at random with a fixed seed. A larger draw begins with
    the smaller one. Raises YarnGGUFError for a damaged file or a folder without files, OSError.
    """
    files = sorted(each for each in path.rglob("*") if _is_requests(each)) if path.is_dir() else [path]
    if not files:
        raise YarnGGUFError(f"{path} has no requests: a folder with files *.jsonl or *.jsonl.gz is expected")
    names: dict[str, Path] = {}
    for each in files:
        other = names.setdefault(_name(each), each)
        if other != each:
            raise YarnGGUFError(f"{other} and {each} are both the task {_name(each)}: rename one")
    return [Task(name, _draw(_read(each), limit)) for name, each in names.items()]


# ----------------------------------------------------------------------------------------------


def _is_requests(path: Path) -> bool:
    return path.name.endswith((".jsonl", ".jsonl.gz"))


def _name(path: Path) -> str:
    """Return the name of a task: its file's; or, for the usual requests.jsonl.gz, its two folders'."""
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    folder = path.resolve().parent
    return f"{folder.parent.name}/{folder.name}" if name == "requests" else name


def _draw(questions: list[Question], limit: int | None) -> tuple[Question, ...]:
    random.Random(0).shuffle(questions)
    return tuple(questions[:limit])


def _read(path: Path) -> list[Question]:
    choices: dict[int, dict[int, tuple[str, str]]] = {}
    labels: dict[int, int] = {}
    for number, line in enumerate(_lines(path), 1):
        doc, index, label, pair = _parse(f"{path}, line {number}", line)
        if doc >= _UNCONDITIONED:
            continue
        choices.setdefault(doc, {})[index] = pair
        labels[doc] = label
    if not choices:
        raise YarnGGUFError(f"{path} has no requests: give a file of JSON lines")
    return [_question(path, doc, by_index, labels[doc]) for doc, by_index in choices.items()]


def _lines(path: Path) -> Iterator[str]:
    opened = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            yield from file
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile, zlib.error) as error:
        raise YarnGGUFError(f"{path} is damaged ({error}): unpack it again") from error


def _parse(where: str, line: str) -> tuple[int, int, int, tuple[str, str]]:
    """Return doc_id, idx, label, and the request's context and continuation."""
    try:
        values = json.loads(line)
        kind = values["request_type"]
        request = values["request"]
        doc, index, label = (_whole(values, key) for key in ("doc_id", "idx", "label"))
        pair = request["context"], request["continuation"]
        if not all(isinstance(text, str) for text in pair):
            raise TypeError("context and continuation must be text")
    except (ValueError, KeyError, TypeError) as error:
        raise YarnGGUFError(
            f"{where} is not a request ({error!r}): doc_id, idx, label and request are expected"
        ) from error
    if kind != "loglikelihood":
        raise YarnGGUFError(
            f"{where}: request_type must be 'loglikelihood', got {kind!r}: leave this file out"
        )
    return doc, index, label, pair


def _whole(values: dict[str, Any], key: str) -> int:
    if type(values[key]) is not int:
        raise TypeError(f"{key} must be a whole number, got {values[key]!r}")
    return values[key]


def _question(path: Path, doc: int, by_index: dict[int, tuple[str, str]], label: int) -> Question:
    if sorted(by_index) != list(range(len(by_index))) or label not in by_index:
        raise YarnGGUFError(
            f"{path}, doc_id {doc}: choices {sorted(by_index)} with label {label}: choices 0, 1, ... and the "
            "number of one of them are expected"
        )
    return Question(tuple(by_index[i] for i in range(len(by_index))), label)
