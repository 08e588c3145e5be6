"""Texts as documents: cut, distinct, and refused if they are too short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from libraries import PROSE

from yarn_gguf import YarnGGUFError
from yarn_gguf.cli import main
from yarn_gguf.evaluate.reading.documents import read_documents, read_pieces


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty: give a text"),
        (b" \n", "is empty: give a text"),
        (b"caf\xe9", r"is no UTF-8 text \(byte 3\)"),
        (b"too short", r"has \d tokens, and 500 are wanted: give a longer text, or a smaller --context"),
    ],
)
def test_a_bad_text_is_refused(smollm2_path, tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(YarnGGUFError, match=f"{path} {message}"):
        read_documents(smollm2_path, [path], 500)


def test_a_text_that_is_given_twice_is_refused(smollm2_path, tmp_path: Path) -> None:
    again = tmp_path / "again.txt"
    again.write_text(PROSE.read_text() + "and a little more")
    with pytest.raises(YarnGGUFError, match=f"{PROSE.stem} and again: the same 300 tokens"):
        read_documents(smollm2_path, [PROSE, again], 300)
    with pytest.raises(YarnGGUFError, match="the same 300 tokens"):
        read_pieces(smollm2_path, [PROSE, again], 300)


def test_texts_are_cut_into_documents_which_alternate(tmp_path: Path, monkeypatch) -> None:
    def tokens(model_path: object, text: str) -> list[int]:
        return [1, *map(ord, text)]

    monkeypatch.setattr("yarn_gguf.run.prompt.text_tokens", tokens)
    paths = [tmp_path / "long.txt", tmp_path / "short.txt"]
    paths[0].write_text("abcdefgh")
    paths[1].write_text("xyzw")
    found = read_pieces("model", paths, 4)
    assert [(each.name, each.tokens.tolist()) for each in found] == [
        ("long", [1, *map(ord, "abc")]),
        ("short", [1, *map(ord, "xyz")]),
        ("long, part 2", [1, *map(ord, "def")]),
    ]
    assert all(each.tokens.dtype == np.int32 for each in found)


def test_the_first_pieces_are_the_beginning_of_the_text(smollm2_path) -> None:
    first, second, *rest = read_pieces(smollm2_path, [PROSE], 5000)
    (whole,) = read_documents(smollm2_path, [PROSE], 10000)
    assert np.array_equal(np.concatenate([first.tokens, second.tokens]), whole.tokens)
    assert [each.name for each in rest] == [f"{PROSE.stem}, part 3"]


def test_a_text_that_is_too_short_is_refused(smollm2_path, capsys) -> None:
    assert main(["advise", str(smollm2_path), "-f", str(PROSE), "-c", "100000"]) == 1
    assert "100,000 are wanted: give a longer text, or a smaller --context" in capsys.readouterr().err
