#!/usr/bin/env python3
"""Work on the patch series as git commits.

    series.py import PRISTINE WORK   make the git repository WORK: the tree PRISTINE, then one commit a patch
    series.py rebase WORK TREE       move the commits of WORK onto another llama.cpp TREE
    series.py export WORK            write the commits of WORK to cpp_patches/patches and cpp_patches/series
    series.py check PRISTINE         import, export elsewhere, and fail if anything differs

The root commit of WORK is the unpatched tree. The subject of each later commit is the patch's file name.
Its body is the DEP-3 header (Description, Origin, Forwarded). A rebase that meets a conflict stops, and
git's own commands continue it. "Refresh the series" in cpp_patches/README.md gives the steps.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent.parent
SEPARATOR = "---\n"
# Settings of every WORK repository. They hold for the git commands that are typed there as well.
CONFIG = {
    "user.name": "yarn-gguf",
    "user.email": "yarn-gguf@localhost",
    "core.autocrlf": "false",
    "commit.gpgsign": "false",
    "merge.conflictStyle": "diff3",
}
CONFLICT = """the patch {name} conflicts with {tree} in:
{files}
Next, in {work}:
  1. edit these files (git diff shows both sides), then: git add FILE...
  2. git rebase --continue
     git rebase --skip drops the patch, if llama.cpp no longer needs it
     git rebase --abort goes back to the old tree
  3. repeat until git says "Successfully rebased", then: series.py export {work}"""


def fail(message: str) -> NoReturn:
    sys.exit(f"series: {message}")


def run_git(folder: Path, *args: str | Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", folder, *args], capture_output=True, text=True, **options)


def git(folder: Path, *args: str | Path, **options) -> str:
    """Return the output of git; exit with its error if it fails."""
    done = run_git(folder, *args, **options)
    if done.returncode != 0:
        fail(f"git {' '.join(map(str, args))} failed in {folder}:\n{done.stderr}")
    return done.stdout


def read_series(folder: Path) -> list[str]:
    lines = (folder / "series").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def require_llama_cpp(tree: Path) -> None:
    if not (tree / "include" / "llama.h").is_file():
        fail(f"{tree} is not a llama.cpp tree: it has no include/llama.h")


def commit_tree(work: Path, tree: Path) -> str:
    """Commit `tree` as a root commit of `work` and return its hash. HEAD and index stay as they are."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "GIT_INDEX_FILE": str(Path(scratch, "index"))}
        into_work = ("--git-dir", work.resolve() / ".git", "--work-tree", ".")
        git(tree, *into_work, "add", "--all", "--force", ".", env=environment)
        written = git(tree, *into_work, "write-tree", env=environment).strip()
    return git(work, "commit-tree", "-m", "unpatched llama.cpp", written).strip()


def root_commit(work: Path) -> str:
    return git(work, "rev-list", "--max-parents=0", "HEAD").strip()


def require_idle(work: Path) -> None:
    """Exit unless `work` comes from import_series, holds no unfinished rebase, and is committed."""
    if not (work / ".git").is_dir():
        fail(f"{work} is not a repository that series.py import made")
    if (work / ".git" / "rebase-merge").exists():
        fail(
            f"a rebase is unfinished in {work}: git status there names the patch and the files. "
            "End it with git rebase --continue, or drop it with git rebase --abort"
        )
    changes = git(work, "status", "--porcelain", "--untracked-files=no")
    if changes:
        fail(f"{work} has changes that are not committed; commit them to their patch first:\n{changes}")


def import_series(pristine: Path, work: Path) -> None:
    require_llama_cpp(pristine)
    if work.exists():
        fail(f"{work} exists already; remove it or name another folder")
    work.mkdir(parents=True)
    git(work, "init", "--quiet", "--initial-branch=series")
    for key, value in CONFIG.items():
        git(work, "config", key, value)
    git(work, "reset", "--quiet", "--hard", commit_tree(work, pristine))
    for name in read_series(HERE):
        text = (HERE / "patches" / name).read_text()
        header, separator, _ = text.partition(SEPARATOR)
        if not separator:
            fail(f"{name} has no line '---' between its DEP-3 header and its diff")
        applied = run_git(work, "apply", "--index", input=text)
        if applied.returncode != 0:
            fail(
                f"the patch {name} does not apply to {pristine}:\n{applied.stderr}"
                "The series is for the tree that cpp_patches/LLAMA_CPP_VERSION pins. To move it to another "
                "tree, import the pinned one and run series.py rebase"
            )
        git(work, "commit", "--quiet", "--cleanup=verbatim", "--file=-", input=f"{name}\n\n{header}")


def rebase_series(work: Path, tree: Path) -> None:
    require_llama_cpp(tree)
    require_idle(work)
    done = run_git(work, "rebase", "--onto", commit_tree(work, tree), root_commit(work))
    if done.returncode == 0:
        print(f"series: every patch fits {tree}; next: series.py export {work}")
        return
    if not (work / ".git" / "rebase-merge").exists():
        fail(f"git rebase failed in {work}:\n{done.stderr}")
    name = git(work, "show", "--no-patch", "--format=%s", "REBASE_HEAD").strip()
    files = git(work, "diff", "--name-only", "--diff-filter=U").splitlines()
    fail(CONFLICT.format(name=name, tree=tree, files="\n".join(f"  {file}" for file in files), work=work))


def patches_of(work: Path) -> dict[str, str]:
    """{file name: text} of every patch, in the order of the commits."""
    patches = {}
    for commit in git(work, "rev-list", "--reverse", f"{root_commit(work)}..HEAD").split():
        name, _, header = git(work, "show", "--no-patch", "--format=%B", commit).partition("\n\n")
        name = name.strip()
        if not name.endswith(".patch") or "/" in name or "\n" in name:
            fail(f"the subject of commit {commit[:10]} is no file name of a patch (NNNN-title.patch): {name}")
        if name in patches:
            fail(f"two commits are named {name}; join them with git rebase --interactive --root")
        diff = git(work, "diff", "--abbrev=10", "--no-color", "--no-renames", f"{commit}~", commit)
        patches[name] = header.rstrip("\n") + "\n" + SEPARATOR + diff
    return patches


def export_series(work: Path, folder: Path) -> None:
    require_idle(work)
    patches = patches_of(work)
    shutil.rmtree(folder / "patches", ignore_errors=True)
    (folder / "patches").mkdir(parents=True)
    for name, text in patches.items():
        (folder / "patches" / name).write_text(text)
    (folder / "series").write_text("".join(f"{name}\n" for name in patches))


def check_series(pristine: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        work, exported = Path(scratch, "work"), Path(scratch, "exported")
        import_series(pristine, work)
        export_series(work, exported)
        names = read_series(HERE)
        differing = filecmp.cmpfiles(HERE / "patches", exported / "patches", names, shallow=False)[1:]
        listed = {path.name for path in (HERE / "patches").iterdir()}
    problems = [*differing[0], *differing[1], *sorted(listed ^ set(names))]
    if problems:
        fail(f"not the same after import and export, or not in the series: {', '.join(problems)}")
    print(f"series: {len(names)} patches, the same after import and export")


def export_and_report(work: Path) -> None:
    before = set(read_series(HERE))
    export_series(work, HERE)
    after = read_series(HERE)
    dropped = sorted(before - set(after))
    print(
        f"series: {len(after)} patches exported"
        + (f"; no longer there: {', '.join(dropped)}" if dropped else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = {
        "import": (import_series, ("pristine", "work")),
        "rebase": (rebase_series, ("work", "tree")),
        "export": (export_and_report, ("work",)),
        "check": (check_series, ("pristine",)),
    }
    commands = parser.add_subparsers(dest="verb", required=True)
    for name, (_, folders) in verbs.items():
        command = commands.add_parser(name)
        for folder in folders:
            command.add_argument(folder, type=Path)
    args = parser.parse_args()
    run, folders = verbs[args.verb]
    run(*(getattr(args, folder) for folder in folders))


if __name__ == "__main__":
    main()
