"""Run the same measurements on different libraries in turns, one round after another.

Drift of the machine affects all of them alike. Compare ratios within a round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
UNPATCHED = ROOT / "build" / "unpatched" / "install" / "yarn_gguf" / "lib"


@dataclass
class Contestant:
    """A program with the protocol of benchmarks/turns.h, and its results.

    libraries: the folder of llama.cpp's libraries. rounds: the values of each round, by name.
    """

    name: str
    libraries: Path
    command: Sequence[object] = ()
    rounds: list[dict[str, float]] = field(default_factory=list)

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | {"LD_LIBRARY_PATH": str(self.libraries)}

    def run(self, command: Sequence[object], **kwargs: Any) -> subprocess.CompletedProcess:
        """Run another command on the same libraries. kwargs: those of subprocess.run."""
        return subprocess.run([*map(str, command)], check=True, env=self._environment, **kwargs)

    def start(self) -> subprocess.Popen:
        """Start `command`, which waits for its first round."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen([*map(str, self.command)], text=True, env=self._environment, **pipes)

    def play(self, process: subprocess.Popen) -> bool:
        """Let the program play one round. Return whether there will be another."""
        process.stdin.write("\n")
        process.stdin.flush()
        values: dict[str, float] = {}
        for line in process.stdout:
            if line in ("done\n", "end\n"):
                self.rounds.append(values)
                return line == "done\n"
            name, tab, value = line.partition("\t")
            if tab:
                values[name] = float(value)
        raise SystemExit(f"{self.name} ended: {' '.join(map(str, self.command))}")

    def median(self, name: str) -> float:
        """Return the median of a value over the rounds."""
        return statistics.median(each[name] for each in self.rounds if name in each)

    def names(self) -> list[str]:
        """Return the names of all values, in the order of their first appearance."""
        return list(dict.fromkeys(name for each in self.rounds for name in each))

    def ratio(self, name: str, other: Contestant) -> float:
        """Return the median over the rounds of our value divided by the other's."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(mine[name] / theirs[name] for mine, theirs in pairs if name in mine)


def compete(contestants: Sequence[Contestant], rounds: int | None = None) -> None:
    """Let all play `rounds` rounds, or until one ends. The order is reversed after each round."""
    with ExitStack() as stack:
        processes = [stack.enter_context(each.start()) for each in contestants]
        order = list(zip(contestants, processes, strict=True))
        while rounds is None or len(contestants[0].rounds) < rounds:
            goes_on = [each.play(process) for each, process in order]
            if not all(goes_on):
                break
            order.reverse()
        for process in processes:
            process.stdin.close()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add options that name the builds to measure; by default those of make setup and make test."""
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--program", type=Path, help="the compiled C++ program")
    parser.add_argument("--libraries", type=Path, help="folder of the patched libraries")
    parser.add_argument("--unpatched", type=Path, default=UNPATCHED, help="folder of the unpatched libraries")


def libraries_of(args: argparse.Namespace) -> Path:
    """Return the folder of the patched libraries: --libraries, or that of the installed package."""
    if args.libraries:
        return args.libraries
    from yarn_gguf.native.library import library_folder

    return library_folder()


@contextmanager
def program_of(args: argparse.Namespace, name: str) -> Iterator[Path]:
    """Compile benchmarks/NAME.cpp, for the patched and the unpatched libraries alike."""
    if args.program:
        yield args.program
        return
    libraries = libraries_of(args)
    tree = next((ROOT / "build").glob("py3-*/llama.cpp"))
    includes = [ROOT / "cpp_patches" / "src", tree / "ggml" / "include", tree / "include"]
    command = ["c++", "-O2", "-std=c++17", *(f"-I{folder}" for folder in includes), HERE / f"{name}.cpp"]
    command += [f"-L{libraries}", "-lllama", "-lggml", "-lggml-base"]
    # the program does not call functions that the unpatched library lacks
    command += ["-Wl,--allow-shlib-undefined,-z,lazy", "-Wl,--unresolved-symbols=ignore-all"]
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch, name)
        subprocess.run([*command, "-o", program], check=True)
        yield program
