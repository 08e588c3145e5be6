"""What a user types, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from yarn_gguf.errors import not_utf8

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer

_LONG_PASTE = 1000  # characters; what is longer is shown by its size
_TALL_PASTE = 8  # lines


def is_terminal() -> bool:
    """Whether somebody types here, and sees what comes."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def piped_lines() -> Iterator[str]:
    """Standard input, line by line. Raises YarnGGUFError where it is no text."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise not_utf8(f"line {number} of standard input", error) from error


def typed_lines(
    commands: Sequence[str], with_file: Sequence[str], toolbar: Callable[[], str]
) -> Iterator[str]:
    """What the user types, until Ctrl-D; Ctrl-C clears the line, Alt-Enter begins another.

    commands: completed by Tab; after those in `with_file`, names of files are. toolbar(): the line below.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory

    pastes = _Pastes()
    session = PromptSession(
        "> ",
        history=InMemoryHistory(),
        completer=_completer(commands, with_file),
        complete_while_typing=False,
        key_bindings=pastes.key_bindings(),
        bottom_toolbar=toolbar,
    )
    while True:
        try:
            line = pastes.expanded(session.prompt())
            yield line.encode("utf-8", "replace").decode("utf-8").strip()  # bytes that are no text come too
        except KeyboardInterrupt:
            if not session.default_buffer.text:
                print("Ctrl-D or /exit leaves.")
        except EOFError:
            return


def _completer(commands: Sequence[str], with_file: Sequence[str]) -> Completer:
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    files = PathCompleter(expanduser=True)

    class Commands(Completer):
        def get_completions(self, document: Document, event: object) -> Iterator[Completion]:
            command, space, rest = document.text_before_cursor.partition(" ")
            if not space:
                for name in commands:
                    if command and name.startswith(command):
                        yield Completion(name, -len(command))
            elif command in with_file:
                for each in files.get_completions(Document(rest), event):
                    slash = "/" if each.display_text.endswith("/") else ""  # of a folder, shown alone
                    yield Completion(each.text + slash, each.start_position, each.display)

    return Commands()


class _Pastes:
    """Long texts that were pasted, each shown as one line."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def shown(self, text: str) -> str:
        """What stands in the input for `text`."""
        lines = text.count("\n") + 1
        if len(text) <= _LONG_PASTE and lines <= _TALL_PASTE:
            return text
        label = f"[paste {len(self._texts) + 1}: {lines:,} lines, {len(text):,} characters]"
        self._texts[label] = text
        return label

    def expanded(self, line: str) -> str:
        """`line` with the texts."""
        for label, text in self._texts.items():
            line = line.replace(label, text)
        return line

    def key_bindings(self):
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.keys import Keys

        bindings = KeyBindings()

        @bindings.add(Keys.BracketedPaste)
        def _(event) -> None:
            text = event.data.replace("\r\n", "\n").replace("\r", "\n")
            event.current_buffer.insert_text(self.shown(text))

        @bindings.add("escape", "enter")
        def _(event) -> None:
            event.current_buffer.insert_text("\n")

        return bindings


class Stop:
    """Whether Ctrl-C was pressed. Called, it says so."""

    def __init__(self) -> None:
        self._is_requested = False

    def __call__(self) -> bool:
        return self._is_requested

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Within, Ctrl-C asks for a stop; it does not interrupt."""

        def request(*_: object) -> None:
            self._is_requested = True

        self._is_requested = False
        before = signal.signal(signal.SIGINT, request)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def printable(text: str) -> str:
    """`text` without what would steer the terminal: a model says what it has read."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")
