"""Sessions: an interrupted or failed save loses nothing that was saved before; damage is noticed."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from libraries import run_cli_on_a_full_disk
from reading import read
from sessions import TOKENS, reopened, saved, tiny_llama

from yarn_gguf import SessionError
from yarn_gguf.session import file as session_file
from yarn_gguf.session.file import START, read_contents
from yarn_gguf.session.session import open_session


def history(model: Path, path: Path) -> list[list[int]]:
    """Write a session with an append, a cut and another append. Return its texts, in order.

    The file then has unused parts and old indices.
    """
    texts = []
    with closing(tiny_llama(model)) as llama:
        session = open_session(llama, path)
        for length, start, stop in [(0, 0, 60), (60, 60, 70), (50, 200, 215)]:
            llama.n_tokens = length
            llama.prefill(TOKENS[start:stop])
            session.save()
            texts.append(session.tokens)
    return texts


def test_a_flipped_bit_anywhere_is_noticed(model: Path, path: Path) -> None:
    history(model, path)
    good = path.read_bytes()
    contents = read_contents(path)
    edges = np.cumsum([START, *(block.size for block in contents.blocks)])
    assert any(block.used < block.count for block in contents.blocks)
    assert sum(block.count == 0 for block in contents.blocks) == 2
    near = [edge + i for edge in edges for i in (-1, 0, 1)]
    positions = {*range(START), *near, *random.Random(0).sample(range(len(good)), 300), len(good) - 1}
    with closing(tiny_llama(model)) as llama:
        for position in sorted(positions):
            damaged = bytearray(good)
            damaged[position] ^= 1 << position % 8
            path.write_bytes(damaged)
            llama.prefill(TOKENS[:3])
            with pytest.raises(
                SessionError, match=r"a \[long\] book\.session: .*(damage|format|cut off|anew)"
            ):
                open_session(llama, path)
        path.write_bytes(good)
        open_session(llama, path)


def test_a_file_that_is_cut_off_is_noticed(model: Path, path: Path) -> None:
    history(model, path)
    good = path.read_bytes()
    with closing(tiny_llama(model)) as llama:
        for length in [0, 1, START - 1, START, START + 100, len(good) // 2, len(good) - 1]:
            path.write_bytes(good[:length])
            with pytest.raises(SessionError, match=r"session: .*: (name another|begin anew)"):
                open_session(llama, path)


def test_damaged_keys_are_read_anew_if_asked_for(model: Path, path: Path) -> None:
    texts = history(model, path)
    damaged = bytearray(path.read_bytes())
    damaged[START + 100] ^= 1
    path.write_bytes(damaged)
    with closing(tiny_llama(model)) as llama:
        with pytest.raises(SessionError, match=r"tokens from 0 on: the file is damaged: with rebuild"):
            open_session(llama, path)
        assert llama.n_tokens == 0
        seen = []
        session = open_session(llama, path, rebuild=True, progress=lambda *done: seen.append(done))
        assert seen[-1] == (65, 65)
        assert llama.input_ids[: llama.n_tokens].tolist() == texts[-1]
        assert session.tokens == texts[-1]
        assert path.read_bytes() == damaged
        session.save()
    with closing(reopened(model, path)) as llama:
        restored = read(llama, TOKENS[300:310])
    with closing(tiny_llama(model)) as llama:
        llama.prefill(texts[-1])
        assert np.array_equal(read(llama, TOKENS[300:310]), restored)


def test_at_every_step_of_a_write_the_file_is_whole(
    model: Path, path: Path, tmp_path: Path, monkeypatch
) -> None:
    """The file is read before, within and after each write, as after a crash."""
    seen: list[bytes] = []
    write_all = session_file._write_all

    def watched(file, data) -> None:
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            file.flush()
            seen.append(path.read_bytes() if path.exists() else b"")
            write_all(file, part)

    monkeypatch.setattr(session_file, "_write_all", watched)
    texts = history(model, path)
    seen.append(path.read_bytes())
    assert len(seen) == 2 * 2 * len(texts) + 1
    copy = tmp_path / "copy.session"
    found = []
    with closing(tiny_llama(model)) as llama:
        for state in seen:
            if state:
                copy.write_bytes(state)
                found.append(texts.index(open_session(llama, copy).tokens))
    assert found == [0] * 4 + [1] * 4 + [2]


def test_saved_bytes_are_on_the_disk_before_they_count(model: Path, path: Path, monkeypatch) -> None:
    """The rest is synced before the new header or the name, and these before `save` ends."""
    synced: list[tuple[bytes, bytes]] = []  # the file's bytes, and the bytes that were synced
    sync = os.fsync

    def watched(descriptor: int) -> None:
        sync(descriptor)
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        data = b"a folder" if is_folder else os.pread(descriptor, 1 << 24, 0)
        synced.append((path.read_bytes() if path.exists() else b"", data))

    monkeypatch.setattr(os, "fsync", watched)
    with closing(tiny_llama(model)) as llama:
        session = open_session(llama, path)
        llama.prefill(TOKENS[:60])
        session.save()
        first = path.read_bytes()
        assert synced == [(b"", first), (first, b"a folder")]
        synced.clear()
        llama.prefill(TOKENS[60:70])
        session.save()
        second = path.read_bytes()
        before = first[:START] + second[START:]
        assert synced == [(before, before), (second, second)]


def test_the_rest_of_an_interrupted_write_is_overwritten(model: Path, path: Path) -> None:
    texts = history(model, path)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"torn" * 100_000)
    with closing(tiny_llama(model)) as llama:
        session = open_session(llama, path)
        assert session.tokens == texts[-1]
        llama.prefill(TOKENS[500:502])
        session.save()
        expected = read(llama, TOKENS[300:310])
    assert path.stat().st_size < size + 50_000
    with closing(reopened(model, path)) as llama:
        assert np.array_equal(read(llama, TOKENS[300:310]), expected)


@pytest.mark.parametrize("call", ["fsync", "write"])
@pytest.mark.parametrize("is_append", [True, False])
def test_a_failing_write_leaves_the_file_as_it_was(
    model: Path, path: Path, monkeypatch, call: str, is_append: bool
) -> None:
    saved(model, path, TOKENS[:50])
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(tiny_llama(model)) as llama:
        session = open_session(llama, path)
        llama.n_tokens = 50 if is_append else 1
        llama.prefill(TOKENS[50:60])
        with monkeypatch.context() as patch:
            patch.setattr(*((os, "fsync") if call == "fsync" else (session_file, "_write_all")), fail)
            with pytest.raises(SessionError, match=r"No space left on device.*nothing was changed.*free"):
                session.save(replace=True)
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]
        session.save(replace=True)
        expected = read(llama, TOKENS[300:310])
    with closing(reopened(model, path)) as llama:
        assert np.array_equal(read(llama, TOKENS[300:310]), expected)


@pytest.mark.parametrize("is_append", [True, False])
def test_a_signal_at_the_end_of_a_save_does_not_end_the_session(
    model: Path, path: Path, monkeypatch, is_append: bool
) -> None:
    """The signal comes when the new file, or its new header, is already in place."""
    saved(model, path, TOKENS[:50])
    before, sync = path.read_bytes(), os.fsync

    def interrupt(descriptor: int) -> None:
        sync(descriptor)
        if path.read_bytes()[:START] != before[:START]:
            raise KeyboardInterrupt

    with closing(tiny_llama(model)) as llama:
        session = open_session(llama, path)
        llama.n_tokens = 50 if is_append else 1
        llama.prefill(TOKENS[50:60])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupt)
            with pytest.raises(KeyboardInterrupt):
                session.save(replace=True)
        assert session.tokens == llama.input_ids[: llama.n_tokens].tolist()
        llama.prefill(TOKENS[60:70])
        session.save()
        expected = read(llama, TOKENS[300:310])
    with closing(reopened(model, path)) as llama:
        assert np.array_equal(read(llama, TOKENS[300:310]), expected)


@pytest.mark.parametrize("other", [TOKENS[300:310], [], TOKENS[:24]])
def test_another_text_does_not_replace_the_saved_one(model: Path, path: Path, other: list[int]) -> None:
    """A request of another thread, or an embedding, may have read it meanwhile."""
    saved(model, path, TOKENS[:50])
    before = path.read_bytes()
    with closing(tiny_llama(model)) as llama:
        refused = pytest.raises(SessionError, match=r"holds 50 tokens.*open.*again, or save\(replace")
        with refused, open_session(llama, path) as session:
            llama.reset()
            llama.prefill(other)
        assert path.read_bytes() == before
        session.save(replace=True)
    assert read_contents(path).tokens.tolist() == other


def test_another_question_to_the_same_document_replaces_the_last(model: Path, path: Path) -> None:
    saved(model, path, TOKENS[:50])
    with closing(tiny_llama(model)) as llama, open_session(llama, path):
        llama.n_tokens = 25
        llama.prefill(TOKENS[100:110])
    assert read_contents(path).tokens.tolist() == TOKENS[:25] + TOKENS[100:110]


def test_the_permissions_of_a_session_stay(model: Path, path: Path) -> None:
    saved(model, path, TOKENS[:50])
    path.chmod(0o600)
    inode = path.stat().st_ino
    with closing(tiny_llama(model)) as llama:
        session = open_session(llama, path)
        llama.n_tokens = 1
        session.save(replace=True)
    assert path.stat().st_ino != inode  # a new file
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_full_disk_is_reported_and_the_session_stays(smollm2_q8: Path, path: Path) -> None:
    arguments = ["run", smollm2_q8, "--session", path, "-t", "2"]
    first = run_cli_on_a_full_disk(*arguments, "--raw", "-n", "2", "-p", "One two three")
    assert first.returncode == 0, first.stderr
    before = path.read_bytes()
    done = run_cli_on_a_full_disk(*arguments, "-n", "2", "-p", "word " * 60)
    assert done.returncode == 1
    assert "cannot be written (File too large); nothing was changed" in done.stderr
    assert done.stderr.count("\n") == 1
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_nothing_that_was_saved(model: Path, path: Path) -> None:
    script = Path(__file__).with_name("session_until_killed.py")
    moments = random.Random(0)
    lengths, torn = set(), 0
    for _ in range(20):
        command = [sys.executable, script, model, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline()
            time.sleep(moments.uniform(0, 1.0))
            process.kill()
            said = process.stdout.read().split()
        offset, length, _ = session_file._parse_header(path, path.read_bytes()[:START])
        torn += path.stat().st_size > offset + length or len(list(path.parent.iterdir())) > 1
        with closing(tiny_llama(model)) as llama:
            tokens = open_session(llama, path).tokens
            read(llama, [3])
        assert tokens == [3 + i % 250 for i in range(len(tokens))]
        # the text that was printed last, or the one after it
        assert len(tokens) == int(said[-1]) or 0 < len(tokens) - int(said[-1]) < 200 or int(said[-1]) > 1800
        lengths.add(len(tokens))
    assert len(lengths) > 10
    assert torn > 5  # in the middle of a write
    with closing(tiny_llama(model)) as llama:
        session = open_session(llama, path)
        llama.n_tokens = 1
        session.save(replace=True)
    assert list(path.parent.iterdir()) == [path]  # temporary files of killed writers are gone


def test_two_writers_of_one_file_do_not_overwrite_each_other(model: Path, path: Path) -> None:
    saved(model, path, TOKENS[:50])
    with closing(tiny_llama(model)) as one, closing(tiny_llama(model)) as other:
        first, second = open_session(one, path), open_session(other, path)
        one.prefill(TOKENS[50:60])
        first.save()
        other.prefill(TOKENS[70:80])
        with pytest.raises(SessionError, match=r"another has saved to it since it was opened"):
            second.save()
        third = open_session(other, path.with_name("elsewhere.session"))
        third.save()
        one.prefill(TOKENS[80:90])
        first.save()
    with closing(reopened(model, path)) as llama:
        assert llama.n_tokens == 70


def waits(do: Callable[[], object], go_on: Callable[[], object]) -> None:
    """Check that `do`, in another thread, waits until `go_on` is called."""
    thread = threading.Thread(target=do)
    thread.start()
    thread.join(0.3)
    is_waiting = thread.is_alive()
    go_on()
    thread.join()
    assert is_waiting


def test_one_process_at_a_time_saves_to_a_folder(model: Path, path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with closing(tiny_llama(model)) as llama:
        llama.prefill(TOKENS[:50])
        session = open_session(llama, path)
        others = os.open(path.parent, os.O_RDONLY)
        fcntl.flock(others, fcntl.LOCK_EX)
        waits(session.save, lambda: os.close(others))
        assert session.tokens == TOKENS[:50]


def test_saving_waits_for_the_request_of_another_thread(model: Path, path: Path) -> None:
    has_begun, go_on = threading.Event(), threading.Event()

    def linger(done: int, total: int) -> None:
        has_begun.set()
        go_on.wait()

    with closing(tiny_llama(model)) as llama:
        session = open_session(llama, path)
        reading = threading.Thread(target=lambda: llama.prefill(TOKENS[:200], linger))
        reading.start()
        has_begun.wait()
        waits(session.save, go_on.set)
        reading.join()
        assert session.tokens == TOKENS[:200]
