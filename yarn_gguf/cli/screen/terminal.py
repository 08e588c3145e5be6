"""Read what a user types, and turn Ctrl-C into a request to stop."""

from __future__ import annotations

import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from yarn_gguf.errors import not_utf8

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_LONG_PASTE = 1000  # characters; a longer paste is shown as its size
_TALL_PASTE = 8  # lines; likewise


def is_terminal() -> bool:
    """Return whether both standard input and standard output are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def piped_lines() -> Iterator[str]:
    """Yield standard input line by line. Raises YarnGGUFError for a line that is not UTF-8."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise not_utf8(f"line {number} of standard input", error) from error


def typed_lines(
    commands: Sequence[str], with_file: Sequence[str], toolbar: Callable[[], str]
) -> Iterator[str]:
    """Yield what the user types, until Ctrl-D. Ctrl-C clears the input, Alt-Enter starts a new line in it.

    commands: completed by Tab.
    with_file: those commands after which Tab completes file names.
    toolbar: return the text of the bottom line.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory

    pastes = _Pastes()
    session: PromptSession[str] = PromptSession(
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
            yield line.encode("utf-8", "replace").decode("utf-8").strip()  # typed bytes may not be UTF-8
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
        def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
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
    """Long pasted texts. The input shows a label of one line for each."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def shortened(self, text: str) -> str:
        """Return `text`, or a label for it if it is long; keep the text of the label."""
        lines = text.count("\n") + 1
        if len(text) <= _LONG_PASTE and lines <= _TALL_PASTE:
            return text
        label = f"[paste {len(self._texts) + 1}: {lines:,} lines, {len(text):,} characters]"
        self._texts[label] = text
        return label

    def expanded(self, line: str) -> str:
        """Return `line` with each label replaced by its text."""
        for label, text in self._texts.items():
            line = line.replace(label, text)
        return line

    def key_bindings(self) -> KeyBindings:
        """Return the bindings for a paste and for Alt-Enter."""
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.keys import Keys

        bindings = KeyBindings()

        @bindings.add(Keys.BracketedPaste)
        def _(event: KeyPressEvent) -> None:
            text = event.data.replace("\r\n", "\n").replace("\r", "\n")
            event.current_buffer.insert_text(self.shortened(text))

        @bindings.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        return bindings


class Stop:
    """Records whether Ctrl-C was pressed. A call returns that."""

    def __init__(self) -> None:
        self._is_requested = False

    def __call__(self) -> bool:
        return self._is_requested

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Make Ctrl-C request a stop instead of raising KeyboardInterrupt, within the block."""

        def request(*_: object) -> None:
            self._is_requested = True

        self._is_requested = False
        before = signal.signal(signal.SIGINT, request)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def printable(text: str) -> str:
    """Return `text` without control characters, by which a model's answer could steer the terminal.

    Newline and tab are kept.
    """
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")
