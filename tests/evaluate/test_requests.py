"""Requests from files: what is read, drawn and refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from questions import EXAMPLES, QUESTIONS, request_lines, write_requests

from yarn_gguf import YarnGGUFError
from yarn_gguf.cli import main
from yarn_gguf.evaluate.requests import read_tasks


def test_requests_are_read_without_the_unconditioned_ones(requests: Path) -> None:
    (task,) = read_tasks(requests)
    assert task.name == "tiny"
    found = {each.choices[0][0]: each for each in task.questions}
    assert len(found) == len(QUESTIONS)
    for question, choices, label in QUESTIONS:
        each = found[f"{EXAMPLES}Question: {question}\nAnswer:"]
        assert [continuation for _, continuation in each.choices] == [f" {choice}" for choice in choices]
        assert each.label == label


def test_a_larger_draw_begins_with_a_smaller_one(requests: Path) -> None:
    (three,), (two,) = read_tasks(requests, 3), read_tasks(requests, 2)
    assert three.questions[:2] == two.questions


def test_a_folder_has_a_task_for_each_file_in_it(tmp_path: Path) -> None:
    for name in ("arc/rc_5shot", "arc/mc_5shot"):
        write_requests(tmp_path / name / "requests.jsonl.gz", request_lines())
    assert [task.name for task in read_tasks(tmp_path)] == ["arc/mc_5shot", "arc/rc_5shot"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-9], "is damaged"),
        (lambda data: gzip.compress(b'{"doc_id": 1'), "line 1 is not a request"),
        (lambda data: gzip.compress(b"[]"), "line 1 is not a request"),
        (
            lambda data: gzip.compress(gzip.decompress(data).replace(b'"label": 1', b'"label": "B"')),
            "line 5 is not a request .*label must be a whole number, got 'B'",
        ),
        (
            lambda data: gzip.compress(gzip.decompress(data).replace(b'"label": 1', b'"label": 7')),
            "doc_id 1: choices .0, 1, 2. with label 7",
        ),
        (
            lambda data: gzip.compress(gzip.decompress(data).replace(b"loglikelihood", b"generate_until")),
            "request_type must be 'loglikelihood', got 'generate_until'",
        ),
        (lambda data: gzip.compress(b""), "has no requests"),
    ],
)
def test_a_bad_file_of_requests_is_refused(requests: Path, change, message: str) -> None:
    requests.write_bytes(change(requests.read_bytes()))
    with pytest.raises(YarnGGUFError, match=f"{requests}.*{message}"):
        read_tasks(requests)


def test_two_files_of_one_name_are_refused(tmp_path: Path, requests: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.jsonl.gz").write_bytes(requests.read_bytes())
    with pytest.raises(YarnGGUFError, match="are both the task same: rename one"):
        read_tasks(tmp_path)


def test_missing_requests_are_named(smollm2_path, tmp_path: Path, capsys) -> None:
    assert main(["eval", "tasks", str(smollm2_path), "--requests", str(tmp_path / "no.jsonl")]) == 1
    assert "no.jsonl" in capsys.readouterr().err
    assert main(["eval", "tasks", str(smollm2_path), "--requests", str(tmp_path)]) == 1
    assert "has no requests" in capsys.readouterr().err
