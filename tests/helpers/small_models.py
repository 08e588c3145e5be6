"""Run the C++ programs that examine upstream's small random models of every architecture."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from libraries import PROGRAMS, ROOT, patched
from upstream_tree import patched_tree


def examine(program: str, names: Iterable[str] = ()) -> list[list[str]]:
    """Run a program of tests/cpp/programs on these architectures, or on all. Return the lines' fields."""
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "GGML_NO_BACKTRACE": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        command = [_compile(program, Path(scratch)), *names]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return [line.split("\t") for line in done.stdout.splitlines()]


def _compile(name: str, folder: Path) -> Path:
    """Compile a program with the library under test. It uses internal classes of llama.cpp."""
    library, program, tree = patched(), folder / name, patched_tree()
    sources = (PROGRAMS / "archs", ROOT / "cpp_patches" / "src", tree / "tests", tree / "src")
    includes = [f"-I{each}" for each in (*sources, tree / "include", tree / "ggml" / "include")]
    libraries = [f"-L{library}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{library}"]
    command = ["c++", "-O1", "-std=c++17", *includes, PROGRAMS / f"{name}.cpp", "-o", program]
    subprocess.run([*command, *libraries], check=True)
    return program
