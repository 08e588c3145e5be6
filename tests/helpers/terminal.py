"""A program in a pseudo-terminal, and its screen, which pyte draws."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte
from libraries import ROOT

TIMEOUT = 120  # seconds, on a busy machine
CTRL_C, CTRL_D, TAB = "\x03", "\x04", "\t"

_PROMPT_BEGINS, _PROMPT_ENDS = "\x1b[?2004h", "\x1b[?2004l"  # bracketed paste, on and off
_STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")


class Terminal:
    """`yarn-gguf ARGUMENTS` in a terminal; a context manager.

    pieces: its output since the last line was entered, piece by piece.
    """

    def __init__(self, *arguments: object, columns: int = 80, rows: int = 24) -> None:
        self._screen = _Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._shown = ""  # all output
        self.pieces: list[str] = []
        self.process = pexpect.spawn(
            sys.executable,
            ["-m", "yarn_gguf", *map(str, arguments)],
            cwd=str(ROOT),
            dimensions=(rows, columns),
            env=os.environ | {"TERM": "xterm-256color", "OMP_WAIT_POLICY": "passive"},
        )
        self.process.delaybeforesend = None
        self._screen.answer = self.process.send

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.close(force=True)

    @property
    def lines(self) -> list[str]:
        """The lines of the screen."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """The screen as one string."""
        return "\n".join(self.lines)

    @property
    def line(self) -> str:
        """The line with the cursor."""
        return self.lines[self._screen.cursor.y]

    @property
    def output(self) -> str:
        """The output since the last line was entered, with single spaces and no line ends."""
        text = self._shown.rpartition(_PROMPT_ENDS)[2].partition(_PROMPT_BEGINS)[0]
        return " ".join(_STEERING.sub("", text).split())

    def type(self, text: str) -> None:
        """Type keys, without Enter."""
        self.process.send(text)

    def enter(self, text: str) -> str:
        """Enter a line. Return its output, once the next prompt is there."""
        self.begin(text)
        self.wait_for_prompt()
        return self.output

    def begin(self, text: str) -> None:
        """Enter a line without waiting for its output."""
        self.type(text)
        self.wait_until(lambda: _dense(text)[-10:] in _dense(self.text))
        self.settle()
        count = self._shown.count(_PROMPT_ENDS)
        self.pieces = []
        self.type("\r")
        self.wait_until(lambda: self._shown.count(_PROMPT_ENDS) > count)

    def paste(self, text: str) -> None:
        """Paste `text`, as a terminal with bracketed paste does."""
        data = ("\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~").encode()
        for start in range(0, len(data), 1024):
            self.process.send(data[start : start + 1024])
            self._read(0)

    def resize(self, columns: int, rows: int) -> None:
        """Give the terminal another size, as a window does."""
        self._screen.resize(rows, columns)
        self.process.setwinsize(rows, columns)

    def settle(self) -> None:
        """Wait until no more output comes."""
        length = -1
        while length != len(self._shown):
            length = len(self._shown)
            self._read(0.3)

    def wait_for_prompt(self) -> None:
        """Wait until a line can be typed and the toolbar is below it."""

        def is_there() -> bool:
            is_begun = self._shown.rfind(_PROMPT_BEGINS) > self._shown.rfind(_PROMPT_ENDS)
            return is_begun and any(" tokens" in line for line in self.lines[self._screen.cursor.y + 1 :])

        self.wait_until(is_there)

    def wait_for_end(self) -> int:
        """Wait for the end of the program. Return its exit status."""
        deadline = time.monotonic() + TIMEOUT
        while self._read(0.1):
            assert time.monotonic() < deadline, f"the program does not end; the screen is\n{self.text}"
        self.process.wait()
        return self.process.exitstatus

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Read output until `is_so()`."""
        deadline = time.monotonic() + TIMEOUT
        while not is_so():
            assert time.monotonic() < deadline, f"waited in vain; the screen is\n{self.text}"
            assert self._read(0.1) or is_so(), f"the program ended; the screen is\n{self.text}"

    def _read(self, timeout: float) -> bool:
        """Read output for `timeout` seconds at most. Return False at its end."""
        try:
            data = self.process.read_nonblocking(65536, timeout)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self._stream.feed(data)
        self.pieces.append(data.decode("utf-8", "replace"))
        self._shown += self.pieces[-1]
        return True


def _dense(text: str) -> str:
    return "".join(text.split())


class _Screen(pyte.Screen):
    def write_process_input(self, data: str) -> None:
        """Answer the program, which asks where the cursor is."""
        self.answer(data)


def session_text(model: Path, path: Path) -> str:
    """Return the text of a session's tokens."""
    from contextlib import closing

    from yarn_gguf.run.prompt import load_vocabulary
    from yarn_gguf.session.file import read_contents

    with closing(load_vocabulary(model)) as vocabulary:
        return vocabulary.detokenize(read_contents(path).tokens.tolist(), special=True).decode()
