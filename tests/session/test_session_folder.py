"""A folder of sessions: a text goes on from the longest prefix match."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from reading import read
from sessions import TOKENS, saved, tiny_llama

from yarn_gguf.run.llama import Llama
from yarn_gguf.session.file import START, read_contents
from yarn_gguf.session.folder import SessionFolder
from yarn_gguf.session.session import Session, open_session


@pytest.fixture
def filled(model: Path, tmp_path: Path) -> Iterator[tuple[Llama, SessionFolder, dict[str, Path]]]:
    """A folder of three sessions: 100 tokens, 150 that begin with these, and 80 others."""
    folder = SessionFolder(tmp_path / "sessions", max_bytes=10**9)
    with closing(tiny_llama(model)) as llama:
        paths = {}
        for i, (name, tokens) in enumerate(
            {"short": TOKENS[:100], "long": TOKENS[:100] + TOKENS[300:350], "other": TOKENS[500:580]}.items()
        ):
            llama.reset()
            llama.prefill(tokens)
            session = Session(llama, folder.folder / f"{name}.session")
            session.save()
            os.utime(session.path, ns=(i, i))
            paths[name] = session.path
        yield llama, folder, paths


def test_the_longest_common_prefix_is_found(filled) -> None:
    llama, folder, paths = filled
    wanted = TOKENS[:100] + TOKENS[300:320] + TOKENS[700:710]
    before = paths["long"].read_bytes()
    session = folder.open(llama, wanted)
    assert llama.input_ids[: llama.n_tokens].tolist() == wanted[:120]
    assert session.path not in paths.values()
    llama.prefill(wanted[120:])
    session.save()
    assert paths["long"].read_bytes() == before
    expected = read(llama, TOKENS[800:810])
    assert folder.open(llama, [*wanted, 5]).path == session.path
    assert np.array_equal(read(llama, TOKENS[800:810]), expected)


def test_a_session_whose_whole_text_matches_is_extended(filled) -> None:
    llama, folder, paths = filled
    session = folder.open(llama, TOKENS[500:600])
    assert session.path == paths["other"]
    assert llama.n_tokens == 80
    llama.prefill(TOKENS[580:600])
    session.save()
    assert len(read_contents(paths["other"]).tokens) == 100


def test_the_notes_of_an_extended_session_stay(filled) -> None:
    """A chat keeps its messages there."""
    llama, folder, paths = filled
    session = open_session(llama, paths["short"])
    session.notes = {"messages": ["hello"]}
    session.save()
    folder.open(llama, TOKENS[:100]).save()
    assert open_session(llama, paths["short"]).notes == {"messages": ["hello"]}


def test_a_text_without_a_match_begins_a_new_session(filled) -> None:
    llama, folder, _ = filled
    session = folder.open(llama, TOKENS[900:950])
    assert llama.n_tokens == 0
    assert session.tokens == []
    llama.prefill(TOKENS[900:950])
    session.save()
    assert len(list(folder.folder.iterdir())) == 4


def test_damaged_sessions_and_those_of_other_models_are_passed_over(filled, model_of) -> None:
    llama, folder, paths = filled
    data = bytearray(paths["long"].read_bytes())
    data[START + 50] ^= 1
    paths["long"].write_bytes(data)
    (folder.folder / "junk.session").write_text("junk")
    saved(model_of("qwen2"), folder.folder / "foreign.session", TOKENS[:140])
    assert folder.open(llama, TOKENS[:100] + TOKENS[300:350]).path == paths["short"]
    assert llama.n_tokens == 100


def test_recurrent_layers_match_only_a_whole_session(model_of, tmp_path: Path) -> None:
    folder = SessionFolder(tmp_path, max_bytes=10**9)
    saved(model_of("lfm2"), tmp_path / "a.session", TOKENS[:100])
    with closing(tiny_llama(model_of("lfm2"))) as llama:
        folder.open(llama, TOKENS[:90])
        assert llama.n_tokens == 0
        folder.open(llama, TOKENS[:110])
        assert llama.n_tokens == 100


def test_the_least_recently_used_sessions_are_removed(filled) -> None:
    llama, folder, paths = filled
    folder.open(llama, TOKENS[:100])  # now this one was used last
    folder.max_bytes = sum(path.stat().st_size for path in paths.values())
    session = folder.open(llama, TOKENS[900:910])
    llama.prefill(TOKENS[900:910])
    session.save()
    assert sorted(path.name for path in folder.folder.iterdir()) == sorted(
        ["other.session", "short.session", session.path.name]
    )
    folder.max_bytes = 1
    (folder.folder / ".gone.session.abc.tmp").write_text("of a killed process")
    llama.prefill(TOKENS[910:920])
    session.save()
    assert list(folder.folder.iterdir()) == [session.path]


def test_a_session_that_was_evicted_while_open_is_written_whole(filled) -> None:
    llama, folder, paths = filled
    session = folder.open(llama, TOKENS[500:600])
    paths["other"].unlink()
    llama.prefill(TOKENS[580:600])
    session.save()
    expected = read(llama, TOKENS[800:810])
    folder.open(llama, TOKENS[500:600])
    assert np.array_equal(read(llama, TOKENS[800:810]), expected)
