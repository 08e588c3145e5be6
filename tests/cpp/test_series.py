"""The patch series moves onto a newer tree: import, rebase, git's own commands in a conflict, export."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from libraries import ROOT

OLD_ROPE = "float base = 10000;\nfloat factor = 1;\nfloat scale = 1;\n"
OLD_CACHE = "first\nsecond\nthird\n"
HEADER = "Description: rope: a factor of {factor}\n Two lines say why.\nOrigin: test\nForwarded: no\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Trees `old` and `new`, and a cpp_patches of its own with two patches for `old`."""
    make_tree(tmp_path / "old", OLD_ROPE, OLD_CACHE)
    # the line of 0001 has changed; the lines around that of 0002 have moved
    make_tree(tmp_path / "new", OLD_ROPE.replace("factor = 1", "factor = 2"), "zeroth\n" + OLD_CACHE)
    git(tmp_path / "new", "init", "--quiet")  # as a clone of llama.cpp is
    patches = tmp_path / "cpp_patches"
    (patches / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "cpp_patches" / "tools" / "series.py", patches / "tools")
    (patches / "series").write_text("")
    (patches / "patches").mkdir()
    work = tmp_path / "made"
    series(tmp_path, "import", "old", work)
    commit(work, "rope.cpp", OLD_ROPE.replace("factor = 1", "factor = 4"), "0001-factor.patch", 4)
    commit(work, "cache.cpp", OLD_CACHE + "fourth\n", "0002-fourth.patch", 1)
    series(tmp_path, "export", work)
    return tmp_path


def test_a_patch_that_conflicts_is_resolved_with_git_and_the_series_fits_the_new_tree(folder):
    series(folder, "import", "old", "work")
    said = series(folder, "rebase", "work", "new", fails=True)
    assert "the patch 0001-factor.patch conflicts with new in:\n  rope.cpp\n" in said
    assert "git rebase --continue" in said
    assert "series: a rebase is unfinished in work" in series(folder, "export", "work", fails=True)

    (folder / "work" / "rope.cpp").write_text(OLD_ROPE.replace("factor = 1", "factor = 8"))
    git(folder / "work", "add", "rope.cpp")
    git(folder / "work", "rebase", "--continue")
    assert series(folder, "export", "work") == "series: 2 patches exported\n"

    assert series(folder, "check", "new") == "series: 2 patches, the same after import and export\n"
    header, _, diff = (
        (folder / "cpp_patches" / "patches" / "0001-factor.patch").read_text().partition("---\n")
    )
    assert header == HEADER.format(factor=4)
    assert "-float factor = 2;\n+float factor = 8;\n" in diff
    diff = (folder / "cpp_patches" / "patches" / "0002-fourth.patch").read_text()
    assert "@@ -2,3 +2,4 @@ zeroth\n first\n second\n third\n+fourth\n" in diff


def test_a_patch_that_the_new_tree_has_leaves_the_series(folder):
    (folder / "new" / "rope.cpp").write_text(OLD_ROPE.replace("factor = 1", "factor = 4"))
    series(folder, "import", "old", "work")
    assert series(folder, "rebase", "work", "new") == (
        "series: every patch fits new; next: series.py export work\n"
    )
    assert series(folder, "export", "work") == (
        "series: 1 patches exported; no longer there: 0001-factor.patch\n"
    )
    assert (folder / "cpp_patches" / "series").read_text() == "0002-fourth.patch\n"
    assert [path.name for path in (folder / "cpp_patches" / "patches").iterdir()] == ["0002-fourth.patch"]


def test_a_rebase_that_is_aborted_exports_the_old_series(folder):
    before = patches(folder)
    series(folder, "import", "old", "work")
    series(folder, "rebase", "work", "new", fails=True)
    git(folder / "work", "rebase", "--abort")
    series(folder, "export", "work")
    assert patches(folder) == before


def test_neither_tree_is_written_to(folder):
    before = {path: path.read_bytes() for name in ("old", "new") for path in files(folder / name)}
    series(folder, "import", "old", "work")
    series(folder, "rebase", "work", "new", fails=True)
    assert {path: path.read_bytes() for name in ("old", "new") for path in files(folder / name)} == before


def test_the_import_holds_files_that_the_tree_tells_git_to_ignore(folder):
    series(folder, "import", "old", "work")
    git(folder / "work", "ls-files", "--error-unmatch", "ignored.cpp")


def test_the_import_of_another_tree_names_the_patch_the_file_and_the_way_on(folder):
    said = series(folder, "import", "new", "work", fails=True)
    assert "the patch 0001-factor.patch does not apply to new:\nerror: patch failed: rope.cpp:1\n" in said
    assert "import the pinned one and run series.py rebase" in said


@pytest.mark.parametrize("verb", [("import", "empty", "work"), ("rebase", "made", "empty")])
def test_a_folder_that_is_no_llama_cpp_tree_is_refused_by_name(folder, verb):
    (folder / "empty").mkdir()
    assert "empty is not a llama.cpp tree: it has no include/llama.h" in series(folder, *verb, fails=True)


def test_export_refuses_what_would_lose_work_and_keeps_the_patches(folder):
    before = patches(folder)
    work = folder / "made"
    (work / "cache.cpp").write_text("changed\n")
    assert "made has changes that are not committed" in series(folder, "export", "made", fails=True)
    commit(work, "cache.cpp", "changed\n", "0002-fourth.patch", 1)
    assert "two commits are named 0002-fourth.patch" in series(folder, "export", "made", fails=True)
    git(work, "commit", "--amend", "--quiet", "--message", "Mend the cache")
    assert "is no file name of a patch (NNNN-title.patch): Mend the cache" in series(
        folder, "export", "made", fails=True
    )
    assert "old is not a repository that series.py import made" in series(folder, "export", "old", fails=True)
    assert patches(folder) == before


def make_tree(tree: Path, rope: str, cache: str) -> None:
    (tree / "include").mkdir(parents=True)
    (tree / "include" / "llama.h").write_text("// the C API\n")
    (tree / "rope.cpp").write_text(rope)
    (tree / "cache.cpp").write_text(cache)
    (tree / ".gitignore").write_text("ignored.cpp\n")
    (tree / "ignored.cpp").write_text("part of the tree all the same\n")


def commit(work: Path, file: str, text: str, name: str, factor: int) -> None:
    (work / file).write_text(text)
    git(work, "commit", "--quiet", "--all", "--message", f"{name}\n\n{HEADER.format(factor=factor)}")


def series(folder: Path, *args: str | Path, fails: bool = False) -> str:
    """Run the copy of series.py in `folder`; return what it prints, or its error if it is to fail."""
    command = [sys.executable, folder / "cpp_patches" / "tools" / "series.py", *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def git(work: Path, *args: str) -> None:
    environment = {**os.environ, "GIT_EDITOR": "true"}
    subprocess.run(["git", "-C", work, *args], check=True, capture_output=True, env=environment)


def patches(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in files(folder / "cpp_patches" / "patches")}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
