"""A real terminal: a pseudo-terminal with a program in it, and a screen that pyte draws."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pexpect
import pyte
from libraries import ROOT

TIMEOUT = 120  # seconds, of a busy machine
CTRL_C, CTRL_D, TAB = "\x03", "\x04", "\t"


class Terminal:
    """`yarn-gguf ARGUMENTS` in it."""

    def __init__(self, *arguments: object, columns: int = 80, rows: int = 24) -> None:
        self._screen = _Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.shown = ""  # everything that came, in pieces as they came
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
        """What stands on the screen."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """The same, as one string."""
        return "\n".join(self.lines)

    def type(self, text: str) -> None:
        """Keys, without Enter."""
        self.process.send(text)

    def enter(self, text: str) -> None:
        """A line, and what comes of it until the next prompt."""
        self.begin(text)
        self.wait_for_prompt()

    def begin(self, text: str) -> None:
        """A line, without waiting; `shown` and `pieces` are what comes from here on."""
        self.type(text)
        if text:
            self.wait_until(lambda: text.strip()[-10:] in self.text.replace("\n", ""))
        self.shown, self.pieces = "", []
        self.type("\r")
        self.wait_until(lambda: not self._has_prompt())

    def paste(self, text: str) -> None:
        """As a terminal that brackets what is pasted."""
        data = ("\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~").encode()
        for start in range(0, len(data), 1024):
            self.process.send(data[start : start + 1024])
            self._read(0)

    def resize(self, columns: int, rows: int) -> None:
        """As when the window is."""
        self._screen.resize(rows, columns)
        self.process.setwinsize(rows, columns)

    def wait_for(self, text: str) -> None:
        """Until `text` has been shown since the last line was entered."""
        self.wait_until(lambda: text in self.shown)

    def wait_for_prompt(self) -> None:
        """Until a line can be typed."""
        self.wait_until(self._has_prompt)

    def wait_for_end(self) -> int:
        """The exit status."""
        deadline = time.monotonic() + TIMEOUT
        while self._read(0.1) and time.monotonic() < deadline:
            pass
        self.process.wait()
        return self.process.exitstatus

    def wait_until(self, is_so) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not is_so():
            assert time.monotonic() < deadline, f"in vain; the screen is\n{self.text}"
            assert self._read(0.1) or is_so(), f"it ended; the screen is\n{self.text}"

    def _has_prompt(self) -> bool:
        """A line that begins with it, where the cursor is, and the toolbar below."""
        at = self._screen.cursor.y
        prompts = [line for line in self.lines[: at + 1] if line.startswith(">")]
        return bool(prompts) and any(" tokens" in line for line in self.lines[at + 1 :])

    def _read(self, timeout: float) -> bool:
        """False at the end."""
        try:
            data = self.process.read_nonblocking(65536, timeout)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self._stream.feed(data)
        self.pieces.append(data.decode("utf-8", "replace"))
        self.shown += self.pieces[-1]
        return True


class _Screen(pyte.Screen):
    def write_process_input(self, data: str) -> None:
        """Where the cursor is, to who asks."""
        self.answer(data)


def session_text(model: Path, path: Path) -> str:
    """What a session's tokens say."""
    from contextlib import closing

    from yarn_gguf.prompt import load_vocabulary
    from yarn_gguf.session_file import read_contents

    with closing(load_vocabulary(model)) as vocabulary:
        return vocabulary.detokenize(read_contents(path).tokens.tolist(), special=True).decode()
