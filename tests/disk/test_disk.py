"""Files on disk: replaced as a whole or not at all, told apart, and read as text."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yarn_gguf.disk.fingerprint import digests, fingerprints, statuses, token_digest
from yarn_gguf.disk.replace import replace_file, replacing, require_outputs, require_replaceable
from yarn_gguf.disk.text import text_of
from yarn_gguf.errors import GGUFError, SessionError, YarnGGUFError


def replace_text(target: Path, text: bytes, like: Path | None = None) -> None:
    with replacing(target, len(text), like) as file:
        file.write(text)


def test_a_replaced_file_has_the_new_text_and_the_mode_of_the_file_it_is_like(tmp_path: Path) -> None:
    target, other = tmp_path / "a", tmp_path / "b"
    target.write_bytes(b"old")
    other.touch(mode=0o640)
    replace_text(target, b"new", like=other)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode == other.stat().st_mode
    assert set(tmp_path.iterdir()) == {target, other}


def test_a_block_that_raises_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(target, 3) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_symbolic_link_stays_and_the_file_behind_it_is_replaced(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"old")
    link.symlink_to(file)
    replace_text(link, b"new")
    assert link.is_symlink()
    assert file.read_bytes() == b"new"


def test_a_folder_that_is_missing_is_named_with_the_remedy(tmp_path: Path) -> None:
    target = tmp_path / "missing" / "a"
    with pytest.raises(GGUFError, match=rf"{target}: cannot be written .*nothing was changed; .* with -o"):
        replace_text(target, b"new")
    with pytest.raises(
        YarnGGUFError, match=rf"{target}: there is no folder {target.parent} that can be written"
    ):
        require_replaceable(target)


def test_an_input_or_a_folder_cannot_be_replaced(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    link.symlink_to(file)
    require_replaceable(file)
    with pytest.raises(YarnGGUFError, match=rf"{link} is also an input: name another file"):
        require_replaceable(link, [file])
    with pytest.raises(YarnGGUFError, match=rf"{tmp_path} is not a regular file: name another"):
        require_replaceable(tmp_path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def link_to_a_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("fifo"))
    path.symlink_to("fifo")


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, make_socket, Path.mkdir, link_to_a_fifo, lambda path: path.symlink_to(path)],
    ids=["a FIFO", "a socket", "a folder", "a link to a FIFO", "a link to itself"],
)
def test_only_a_plain_file_is_replaced(make: Callable[[Path], None], short_path: Path) -> None:
    target = short_path / "a"
    make(target)
    before = {each: each.lstat() for each in short_path.iterdir()}
    for refused in (replace_text, replace_file, lambda path, _: require_replaceable(path)):
        with pytest.raises(YarnGGUFError, match=f"{target} is not a regular file: name another"):
            refused(target, b"new")
    assert {each: each.lstat() for each in short_path.iterdir()} == before


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_a_device_is_not_replaced(kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches a real device: a plain file says that it is one."""
    target, real_stat = tmp_path / "a", os.stat
    target.write_bytes(b"old")

    def status(path: Any, **options: Any) -> os.stat_result:
        found = real_stat(path, **options)
        return os.stat_result((kind | 0o666, *found[1:])) if Path(path) == target else found

    monkeypatch.setattr(os, "stat", status)
    with pytest.raises(GGUFError, match=f"{target} is not a regular file: name another"):
        replace_text(target, b"new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"


def test_an_input_is_never_replaced_whatever_its_name(tmp_path: Path) -> None:
    file, link, twin = (tmp_path / name for name in ("file", "link", "twin"))
    file.write_bytes(b"old")
    link.symlink_to(file)
    twin.hardlink_to(file)
    for target in (file, link, twin):
        for source in (file, link, twin):
            with pytest.raises(SessionError, match=f"{target} is also an input"):
                replace_file(target, b"new", [tmp_path / "missing", source], error=SessionError)
    assert file.read_bytes() == b"old"
    replace_file(link, b"new", [tmp_path / "missing"])
    assert file.read_bytes() == b"new"


def test_two_outputs_of_one_name_are_refused(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(file)
    require_outputs([file, tmp_path / "other"], [])
    with pytest.raises(YarnGGUFError, match=f"{file} and {link} are the same file: give each"):
        require_outputs([file, link], [])


def test_a_file_that_is_written_to_or_replaced_has_another_status(tmp_path: Path) -> None:
    file = tmp_path / "a"
    assert statuses(file) == []
    file.write_bytes(b"one")
    first = statuses(file)
    assert statuses(file) == first
    file.write_bytes(b"three")
    second = statuses(file)
    replace_text(file, b"three")
    assert len({*first, *second, *statuses(file)}) == 3


def test_each_file_of_a_split_model_has_its_own_digest(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    for number, part in enumerate(parts):
        part.write_bytes(bytes([number]))
    for of in (fingerprints, digests):
        assert of(parts[0]) == of(parts[1])
        assert len(set(of(parts[0]))) == 2
    parts[1].write_bytes(b"changed")
    assert digests(parts[0]) == digests(parts[1])  # a changed file is read again


def test_tokens_have_one_digest_as_a_list_and_as_an_array() -> None:
    assert token_digest([1, 2]) == token_digest(np.array([1, 2])) != token_digest([2, 1])


def test_a_text_that_is_blank_or_no_utf_8_is_refused_by_its_source() -> None:
    assert text_of("é".encode(), "a.txt") == "é"
    with pytest.raises(YarnGGUFError, match=r"a\.txt is empty: give a text"):
        text_of(b" \n", "a.txt")
    with pytest.raises(YarnGGUFError, match=r"a\.txt is no UTF-8 text \(byte 1\): convert it first"):
        text_of(b"a\xff", "a.txt")
