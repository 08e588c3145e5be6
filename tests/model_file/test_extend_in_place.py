"""An extension, in place or as a copy, changes the rope keys and keeps everything else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import gguf
import pytest
from rope_keys import PADDING_KEYS
from tiny_gguf import contents, write_tiny

from yarn_gguf.errors import GGUFError
from yarn_gguf.gguf import edit as gguf_edit
from yarn_gguf.gguf.header import read_header
from yarn_gguf.model_file.extend import extend
from yarn_gguf.rope.read import read_model
from yarn_gguf.rope.scaling import RopeScaling

# ---- what stays as it was --------------------------------------------------------------------


def assert_only_rope_keys_differ(old: Path, new: Path) -> None:
    (old_keys, old_tensors), (new_keys, new_tensors) = contents(old), contents(new)
    assert new_tensors == old_tensors
    changed = {key for key in old_keys | new_keys if old_keys.get(key) != new_keys.get(key)}
    assert {key for key in changed if not key.startswith(("llama.rope.", "llama.context_length"))} <= set(
        PADDING_KEYS
    )


@pytest.mark.parametrize("alignment", [None, 8, 64, 8192])
def test_all_else_is_read_by_gguf_as_before(tmp_path: Path, alignment: int | None) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", alignment=alignment)
    output = tmp_path / "out.gguf"
    extend(path, RopeScaling("yarn", 4.0), output=output)
    assert_only_rope_keys_differ(path, output)
    extend(output, RopeScaling("yarn", 2.0))
    assert_only_rope_keys_differ(path, output)
    assert read_header(output).data_offset % (alignment or 32) == 0


def test_unchanged_keys_are_copied_verbatim_and_in_order(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    extend(tiny, RopeScaling("yarn", 4.0), output=output)
    old, new = read_header(tiny).entries, read_header(output).entries
    touched = ("llama.rope.", "llama.context_length", *PADDING_KEYS)
    kept = [entry for entry in old.values() if not entry.key.startswith(touched)]
    assert [entry for entry in new.values() if not entry.key.startswith(touched)] == kept


def test_trailing_bytes_are_kept(tiny: Path, tmp_path: Path) -> None:
    tiny.write_bytes(tiny.read_bytes() + b"trailing")
    extend(tiny, RopeScaling("yarn", 4.0), output=tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes().endswith(b"trailing")


def test_a_file_without_tensors_can_be_extended(tmp_path: Path) -> None:
    path = tmp_path / "vocab.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {"context_length": 64, "embedding_length": 64, "attention.head_count": 1}.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert extend(path, RopeScaling("yarn", 4.0)).context_length == 256
    assert extend(path, RopeScaling("yarn", 2.0)).how == "in place"


def test_a_real_file_keeps_everything_else(smollm2_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    extend(smollm2_path, RopeScaling("yarn", 4.0), output=output)
    assert_only_rope_keys_differ(smollm2_path, output)
    moved = read_header(output).data_offset - read_header(smollm2_path).data_offset
    assert moved % gguf_edit.PAGE == 0


# ---- in place --------------------------------------------------------------------------------


def test_the_second_change_is_one_write_within_a_page(tiny: Path) -> None:
    assert extend(tiny, RopeScaling("yarn", 4.0)).how == "copied"
    inode, before = tiny.stat().st_ino, tiny.read_bytes()
    done = extend(tiny, RopeScaling("yarn", 2.0))
    after = tiny.read_bytes()
    differing = [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    assert done.how == "in place"
    assert tiny.stat().st_ino == inode
    assert differing[0] // gguf_edit.PAGE == differing[-1] // gguf_edit.PAGE
    assert done.bytes_written == differing[-1] - differing[0] + 1


@pytest.mark.parametrize("name_length", range(0, 8192, 331))
def test_the_changed_keys_never_straddle_pages(tmp_path: Path, name_length: int) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", filler="x" * name_length)
    extend(path, RopeScaling("yarn", 4.0))
    assert extend(path, RopeScaling("yarn", 2.0)).how == "in place"


def test_a_change_in_more_than_one_page_is_a_copy(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", filler="x" * 5000)
    extend(path, RopeScaling("yarn", 4.0))
    done = extend(path, RopeScaling("ntk", 4.0))  # it has other keys, and their number is in the first page
    assert done.how == "copied"
    assert done.bytes_written == path.stat().st_size


def test_room_is_left_for_later_changes(tiny: Path) -> None:
    extend(tiny, RopeScaling("yarn", 4.0))
    assert len(read_header(tiny).entries["yarn_gguf.spare"].value) >= 256


def test_nothing_is_written_where_nothing_changes(tiny: Path) -> None:
    extend(tiny, RopeScaling("yarn", 4.0))
    before = tiny.stat().st_mtime_ns
    assert extend(tiny, RopeScaling("yarn", 4.0)).how == "unchanged"
    assert tiny.stat().st_mtime_ns == before


def test_a_file_that_another_changed_meanwhile_is_left_alone(tiny: Path) -> None:
    extend(tiny, RopeScaling("yarn", 4.0))
    stale = read_header(tiny)
    extend(tiny, RopeScaling("yarn", 2.0))
    before = tiny.read_bytes()
    with pytest.raises(GGUFError, match="changed since it was read: try again"):
        gguf_edit.change_keys(stale, [], ["llama.rope.scaling.type"])
    assert tiny.read_bytes() == before


def test_a_symbolic_link_is_followed(tiny: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(tiny.name)
    for factor in (4.0, 2.0):
        extend(link, RopeScaling("yarn", factor))
        assert link.is_symlink()
        assert read_model(tiny).scaling.factor == factor


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_the_mode_is_kept(tiny: Path, mode: int) -> None:
    tiny.chmod(mode)
    extend(tiny, RopeScaling("yarn", 4.0))
    assert tiny.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("failure", [OSError(errno.EXDEV, "other device"), AttributeError("copy_file_range")])
def test_a_system_that_cannot_copy_ranges_copies_bytes(tiny: Path, monkeypatch, failure: Exception) -> None:
    old = contents(tiny)[1]

    def cannot(*args: object) -> int:
        raise failure

    monkeypatch.setattr(os, "copy_file_range", cannot)
    extend(tiny, RopeScaling("yarn", 4.0))
    assert contents(tiny)[1] == old
