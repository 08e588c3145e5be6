"""An extension that is interrupted, killed or out of disk space leaves the old file or the new one."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from libraries import run_cli_on_a_full_disk
from rope_keys import rope_keys
from tiny_gguf import write_tiny

from yarn_gguf.errors import GGUFError
from yarn_gguf.gguf.header import read_header
from yarn_gguf.model_file.extend import Extension, extend
from yarn_gguf.rope.scaling import RopeScaling


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("call", ["copy_file_range", "fsync"])
def test_an_interrupted_copy_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch, call: str, failure
) -> None:
    tiny = write_tiny(tmp_path / "tiny.gguf", data_kib=64)
    before = tiny.read_bytes()

    def fail(*args: object) -> int:
        raise failure

    monkeypatch.setattr(os, call, fail)
    with pytest.raises((KeyboardInterrupt, GGUFError)) as caught:
        extend(tiny, RopeScaling("yarn", 4.0))
    assert tiny.read_bytes() == before
    assert list(tiny.parent.iterdir()) == [tiny]
    if caught.type is GGUFError:
        assert "No space left on device" in str(caught.value)
        assert "bytes needed" in str(caught.value)


def test_a_full_disk_is_reported_and_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", data_kib=1024)
    before = path.read_bytes()
    done = run_cli_on_a_full_disk("extend", path, "--in-place", "--factor", "4")
    assert done.returncode == 1
    assert "cannot be written (File too large); nothing was changed" in done.stderr
    assert done.stderr.count("\n") == 1
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


KILLS = 10  # on each of the two paths


def test_a_kill_leaves_the_old_file_or_the_new_one(smollm2_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    known = _known_states(smollm2_path, path)
    shutil.copyfile(smollm2_path, path)
    duration = _seconds_to_extend(path)
    moments = random.Random(0)
    outcomes = []
    for _ in range(KILLS):  # while the file is copied
        shutil.copyfile(smollm2_path, path)
        _kill_after(path, "once", moments.uniform(0, 1.2 * duration))
        outcomes.append(known[_digest(path)])
        for leftover in tmp_path.glob(".*.tmp"):
            leftover.unlink()
    assert set(outcomes) <= {"raw", "x4"}
    extend(path, RopeScaling("yarn", 4.0))
    for _ in range(KILLS):  # while its header is changed again and again
        _kill_after(path, "repeat", moments.uniform(0, 0.5))
        assert known[_digest(path)] in ("x2", "x4")
        read_header(path)
    assert extend(path, RopeScaling("yarn", 8.0)).how == "in place"


def _known_states(raw: Path, path: Path) -> dict[str, str]:
    """Return the name of each state that may be found, by its hash. GGUFReader reads them all."""
    shutil.copyfile(raw, path)
    known = {_digest(path): "raw"}
    for factor in (4.0, 2.0):
        extend(path, RopeScaling("yarn", factor))
        assert rope_keys(path)["context_length"] == 8192 * factor
        known[_digest(path)] = f"x{factor:g}"
    assert len(known) == 3
    return known


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _seconds_to_extend(path: Path) -> float:
    start = time.perf_counter()
    done: Extension = extend(path, RopeScaling("yarn", 4.0))
    assert done.how == "copied"
    return time.perf_counter() - start


def _kill_after(path: Path, mode: str, seconds: float) -> None:
    """Run a process that extends `path`, and kill it `seconds` after it began."""
    script = Path(__file__).with_name("extend_until_killed.py")
    with subprocess.Popen([sys.executable, script, path, mode], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        process.kill()
