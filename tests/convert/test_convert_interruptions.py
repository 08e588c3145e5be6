"""A conversion that is stopped midway, by a signal or a full disk, leaves nothing behind."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hf_checkpoints import convert_weights
from libraries import run_cli_on_a_full_disk

from yarn_gguf.convert.plan import plan_conversion
from yarn_gguf.errors import GGUFError


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("split", [0, 1_000_000])
def test_an_interruption_leaves_nothing(folder: Path, tmp_path: Path, failure, split: int) -> None:
    def fail(done: int, total: int) -> None:
        if done > total / 2:
            raise failure

    with pytest.raises((KeyboardInterrupt, GGUFError)):
        convert_weights(folder, tmp_path / "out.gguf", type="q8_0", split_max_size=split, progress=fail)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_kill_leaves_no_file_under_the_final_name(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    script = Path(__file__).with_name("convert_until_killed.py")
    for lines in (1, 20, 60):
        with subprocess.Popen([sys.executable, script, folder, output], stdout=subprocess.PIPE) as process:
            for _ in range(lines):
                process.stdout.readline()
            process.kill()
        assert not output.exists()


def test_a_disk_without_room_is_refused_at_the_beginning(folder: Path, tmp_path: Path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    size = plan_conversion(folder, type="q8_0", tokenizer=False).size
    seen = []
    with pytest.raises(GGUFError, match=f"{size:,} bytes needed, 1,000 free: make room"):
        convert_weights(folder, tmp_path / "out.gguf", type="q8_0", progress=lambda *args: seen.append(args))
    assert seen == []
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_that_cannot_grow_gives_one_line_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    done = run_cli_on_a_full_disk(
        "convert", folder, "-o", tmp_path / "out.gguf", "--type", "q8_0", "--no-tokenizer"
    )
    assert done.returncode == 1
    assert "cannot be written (File too large); nothing was changed" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [folder]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB: a little more than the checkpoint takes in q8_0."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6000k", "tmpfs", disk]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a file system; a limit on the size of a file is tested instead")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_too_small_is_refused(folder: Path, small_disk: Path) -> None:
    with pytest.raises(GGUFError, match=r"bytes needed, 6,144,000 free: make room"):
        convert_weights(folder, small_disk / "out.gguf", type="f16")
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("split", [0, 1_000_000])
def test_a_disk_that_fills_up_meanwhile_keeps_the_old_file_and_no_part_of_the_new(
    folder: Path, small_disk: Path, split: int
) -> None:
    output, filler = small_disk / "out.gguf", small_disk / "filler"
    old = [] if split else [output]
    for path in old:
        path.write_text("old")

    def fill(done: int, total: int) -> None:
        if not filler.exists() and done > total / 4:
            with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    with pytest.raises(GGUFError, match="No space left on device"):
        convert_weights(folder, output, type="q8_0", split_max_size=split, force=True, progress=fill)
    assert sorted(small_disk.iterdir()) == sorted([filler, *old])
    assert all(path.read_text() == "old" for path in old)
