"""Compile the programs that test the rope op, on its headers alone or on the library under test."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from libraries import PROGRAMS, ROOT, patched
from upstream_tree import patched_tree

SOURCES = ROOT / "cpp_patches" / "src"
TREE = patched_tree()


def compile_program(source: Path, output: Path, *options: str) -> Path:
    """Compile `source` to `output`, with the flags in CXXFLAGS. `make sanitize` puts a sanitizer there."""
    flags = ["-O2", "-std=c++17", *os.environ.get("CXXFLAGS", "").split()]
    includes = [f"-I{SOURCES}", f"-I{TREE / 'ggml' / 'include'}"]
    subprocess.run(["c++", *flags, *includes, source, "-o", output, *options], check=True)
    return output


def compile_on_ggml(source: Path, output: Path, *options: str) -> Path:
    """Compile `source` and link it with ggml of the library under test."""
    folder = patched()
    libraries = [f"-L{folder}", "-lggml", "-lggml-base", f"-Wl,-rpath,{folder}", f"-Wl,-rpath-link,{folder}"]
    return compile_program(source, output, *options, *libraries, "-pthread")


def compile_with_kernels(source: Path, output: Path) -> Path:
    """Compile `source` with the CUDA kernels, which then run on the host.

    A vector that is not aligned ends the program.
    """
    options = ("-DROPE_KERNELS", f"-I{PROGRAMS / 'kernels_on_host'}", "-Wno-unknown-pragmas")
    return compile_on_ggml(source, output, *options, "-fsanitize=alignment", "-fno-sanitize-recover=all")
