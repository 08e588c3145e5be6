"""Shared by the tests of yarn-gguf chat: a text, options, and both commands without a terminal."""

from __future__ import annotations

import subprocess
import sys

from libraries import PROSE, ROOT

QUICK = ("-t", "2", "--temp", "0", "-n", "12")
TEXT = PROSE.read_text(encoding="utf-8")


def piped(text: str | bytes, *arguments: object) -> subprocess.CompletedProcess:
    """Run `yarn-gguf chat ARGUMENTS` with `text` as its standard input. Its output is bytes."""
    line = [sys.executable, "-m", "yarn_gguf", "chat", *map(str, arguments)]
    data = text.encode() if isinstance(text, str) else text
    return subprocess.run(line, input=data, capture_output=True, cwd=ROOT)


def run_command(*arguments: object) -> subprocess.CompletedProcess:
    """Run `yarn-gguf run ARGUMENTS`. Its output is text."""
    line = [sys.executable, "-m", "yarn_gguf", "run", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
