#!/usr/bin/env python3
"""Work on the patch series as git commits.

    series.py import PRISTINE WORK   PRISTINE tree -> git repository WORK, one commit a patch
    series.py export WORK            the commits of WORK -> cpp_patches/patches and cpp_patches/series
    series.py check PRISTINE         import, export elsewhere, and fail if anything differs

A commit's subject is the patch's file name; its body is the DEP-3 header (Description, Origin,
Forwarded). To refresh the series for a new llama.cpp: import, mend what fails, amend, export.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
BASE_TAG = "pristine"
SEPARATOR = "---\n"


def git(work: Path, *args: str, input_text: str | None = None) -> str:
    identity = [
        "-c",
        "user.name=yarn-gguf",
        "-c",
        "user.email=yarn-gguf@localhost",
        "-c",
        "core.autocrlf=false",
    ]
    command = ["git", "-C", str(work), *identity, *args]
    done = subprocess.run(command, input=input_text, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"series: git {' '.join(args[:2])} failed in {work}:\n{done.stderr}")
    return done.stdout


def read_series(folder: Path) -> list[str]:
    lines = (folder / "series").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def import_series(pristine: Path, work: Path) -> None:
    if work.exists():
        sys.exit(f"series: {work} exists already; remove it or name another folder")
    shutil.copytree(pristine, work, ignore=shutil.ignore_patterns(".git"))
    git(work, "init", "--quiet")
    git(work, "add", "--all", "--force")
    git(work, "commit", "--quiet", "--message", "pristine llama.cpp")
    git(work, "tag", BASE_TAG)
    for name in read_series(HERE):
        text = (HERE / "patches" / name).read_text()
        header, separator, _ = text.partition(SEPARATOR)
        if not separator:
            sys.exit(f"series: {name} has no line '---' between its DEP-3 header and its diff")
        git(work, "apply", "--index", input_text=text)
        git(work, "commit", "--quiet", "--cleanup=verbatim", "--file=-", input_text=f"{name}\n\n{header}")


def export_series(work: Path, folder: Path) -> None:
    patches = folder / "patches"
    shutil.rmtree(patches, ignore_errors=True)
    patches.mkdir(parents=True)
    names = []
    for commit in git(work, "rev-list", "--reverse", f"{BASE_TAG}..HEAD").split():
        name, _, header = git(work, "show", "--no-patch", "--format=%B", commit).partition("\n\n")
        diff = git(work, "diff", "--abbrev=10", "--no-color", "--no-renames", f"{commit}~", commit)
        (patches / name).write_text(header.rstrip("\n") + "\n" + SEPARATOR + diff)
        names.append(name)
    (folder / "series").write_text("".join(f"{name}\n" for name in names))


def check_series(pristine: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        work, exported = Path(scratch, "work"), Path(scratch, "exported")
        exported.mkdir()
        import_series(pristine, work)
        export_series(work, exported)
        names = read_series(HERE)
        differing = filecmp.cmpfiles(HERE / "patches", exported / "patches", names, shallow=False)[1:]
        listed = {path.name for path in (HERE / "patches").iterdir()}
    problems = [*differing[0], *differing[1], *sorted(listed ^ set(names))]
    if problems:
        sys.exit(f"series: not the same after import and export, or not in the series: {', '.join(problems)}")
    print(f"series: {len(names)} patches, the same after import and export")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, folders in (("import", ("pristine", "work")), ("export", ("work",)), ("check", ("pristine",))):
        command = commands.add_parser(name)
        for folder in folders:
            command.add_argument(folder, type=Path)
    args = parser.parse_args()
    if args.command == "import":
        import_series(args.pristine, args.work)
    elif args.command == "export":
        export_series(args.work, HERE)
    else:
        check_series(args.pristine)


if __name__ == "__main__":
    main()
