"""The turns of a chat in the terminal: messages, commands, and answers to both."""

from __future__ import annotations

import difflib
import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from yarn_gguf.cli.screen.progress import reading_progress
from yarn_gguf.cli.screen.terminal import Stop, is_terminal, piped_lines, printable, typed_lines
from yarn_gguf.disk.sizes import size_text
from yarn_gguf.disk.text import text_of
from yarn_gguf.errors import Cancelled, RopeScalingError, YarnGGUFError, message_of
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.read import read_model
from yarn_gguf.run.llama import Llama
from yarn_gguf.session import kv_state
from yarn_gguf.session.conversation import ContextFullError, Conversation
from yarn_gguf.session.session import Session, open_session

_COMMAND = re.compile(r"/(\w*)(?:\s+(.*))?", re.DOTALL)
_LONG = 512  # tokens: more take a moment to read


class Chat:
    """Obeys lines that a user types, or that come through a pipe. In a pipe the first error ends it."""

    def __init__(self, llama: Llama, conversation: Conversation, console: Console) -> None:
        self._llama, self._conversation, self._console = llama, conversation, console
        self._stop = Stop()
        self._has_user = is_terminal()

    def run(self) -> None:
        """Go on until the input ends, or /exit."""
        if isinstance(sys.stdout, io.TextIOWrapper):  # models say what not every terminal can show
            sys.stdout.reconfigure(errors="replace")
        if self._has_user:
            self._greet()
        for line in self._lines():
            with self._reporting_errors():
                if line in ("/exit", "/quit"):
                    break
                self._do(line)
        with self._stop.catching():
            self._conversation.save()

    def _lines(self) -> Iterator[str]:
        if self._has_user:
            return typed_lines(
                [f"/{name}" for name in [*COMMANDS, "exit"]], ("/load", "/save"), self._toolbar
            )
        return piped_lines()

    def _greet(self) -> None:
        session, name = self._conversation.session, Path(self._llama.model_path).name
        self._say(f"{name}, {self._llama.n_ctx():,} tokens. /help lists the commands, Ctrl-D leaves.")
        if session is not None and session.tokens:
            self._say(f"{session.path.name}: {len(session.tokens):,} tokens were read before.")

    def _toolbar(self) -> str:
        parts = [f"{self._conversation.n_tokens:,} of {self._llama.n_ctx():,} tokens"]
        if isinstance(self._llama.rope_scaling, DynamicScaling):
            parts.append(f"s = {self._llama.dynamic_state.factor:.3g}")
        if self._conversation.session is not None:
            parts.append(self._conversation.session.path.name)
        return " | ".join(parts)

    def _do(self, line: str) -> None:
        command = _COMMAND.fullmatch(line)
        if not line:
            return
        if command is None:
            said = "the message was not sent. What was read of it stays cached."
            self._turn(lambda **how: self._conversation.say(line, **how), said)
        elif command[1] in COMMANDS:
            COMMANDS[command[1]].run(self, (command[2] or "").strip())
        else:
            known = [*COMMANDS, "exit"]
            like = difflib.get_close_matches(command[1], known, 1)
            hint = f"did you mean /{like[0]}?" if like else "/help lists those there are"
            raise YarnGGUFError(f"there is no command /{command[1]}: {hint}")

    def _turn(self, read: Callable[..., None], if_stopped: str) -> None:
        """Read, answer, save."""
        with self._stop.catching():
            if self._read(read):
                self._answer()
            else:
                self._say(f"Stopped: {if_stopped}")
            self._conversation.save()

    def _read(self, read: Callable[..., None]) -> bool:
        """Let `read` read. Return False if Ctrl-C stopped it."""
        with reading_progress(self._console) as report:

            def report_if_long(done: int, total: int) -> None:
                if total > _LONG:
                    report(done, total)
                if self._stop():
                    self._llama.cancel()

            try:
                read(progress=report_if_long)
            except Cancelled:
                return False
            return True

    def _answer(self) -> None:
        conversation = self._conversation
        with closing(conversation.answer()) as pieces:
            for piece in pieces:
                sys.stdout.write(printable(piece) if self._has_user else piece)
                sys.stdout.flush()
                if self._stop():
                    break
        print(flush=True)
        if conversation.finish == "stopped":
            self._say("Stopped. The answer stays as far as it came; /retry replaces it.")
        elif conversation.finish == "length":
            self._say("Cut off by -n; what you say next goes on from here.")
        elif conversation.finish == "full":
            self._say(f"The context is full. {self._remedy(2 * self._llama.n_ctx())}", "yellow")

    # ---- commands ------------------------------------------------------------------------------

    def _load(self, name: str) -> None:
        if not name:
            raise YarnGGUFError("/load needs a file: /load FILE")
        path = _path(name)
        text = text_of(path.read_bytes(), path)
        before = self._conversation.n_tokens
        with self._stop.catching():
            is_read = self._read(lambda **how: self._conversation.load(path.name, text, **how))
            self._conversation.save()
        if is_read:
            now = self._conversation.n_tokens
            left = self._llama.n_ctx() - now
            self._say(f"{path}: {now - before:,} tokens were read; there is room for {left:,} more.")
            self._say("Your next message goes with it.")
        else:
            self._say(
                "Stopped: the document is not part of the conversation. What was read of it stays cached,"
            )
            self._say("so that the same /load goes on from there.")

    def _context(self, _: str) -> None:
        table = Table.grid(padding=(0, 2))
        for name, value in self._facts():
            table.add_row(name, Text(value))
        self._console.print(table)

    def _facts(self) -> Iterator[tuple[str, str]]:
        llama, conversation = self._llama, self._conversation
        used, n_ctx = conversation.n_tokens, llama.n_ctx()
        yield "context", f"{used:,} of {n_ctx:,} tokens ({used / n_ctx:.0%})"
        yield "scaling", self._scaling()
        ours, cached = conversation.n_cached, len(llama.cached_text)
        of_this = "" if ours == cached else f", {ours:,} of them of this conversation"
        size = size_text(kv_state.size_of(llama)) if cached else "nothing"
        yield "cached", f"{cached:,} tokens{of_this}; {size}"
        before = ", after what was said before this chat" if conversation.has_unknown else ""
        waiting = ", and a document that waits for your next message" if conversation.draft else ""
        yield "messages", f"{len(conversation.known_messages)}{before}{waiting}"
        session = conversation.session
        saved = (
            f"{session.path}: {len(session.tokens):,} tokens saved"
            if session
            else "none; /save FILE makes one"
        )
        yield "session", saved

    def _scaling(self) -> str:
        scaling = self._llama.rope_scaling
        if isinstance(scaling, DynamicScaling):
            original = scaling.original_max_position_embeddings
            factor = self._llama.dynamic_state.factor
            return f"dynamic {scaling.method}, s = {factor:.4g} now, from {original:,} tokens on"
        try:
            scaling = scaling or read_model(self._llama.model_path).scaling
        except RopeScalingError:
            return "none: the model has no rotary embedding"
        return scaling.method if scaling.method == "none" else f"{scaling.method}, factor {scaling.factor:g}"

    def _save(self, name: str) -> None:
        conversation, before = self._conversation, self._conversation.session
        if not len(self._llama.cached_text):
            raise YarnGGUFError("there is nothing to save yet: say something first")
        session = conversation.session = self._session_to_save(name)
        try:
            with self._stop.catching():
                conversation.save()
        except BaseException:
            conversation.session = before
            raise
        size = size_text(session.path.stat().st_size)
        self._say(f"{session.path}: {len(session.tokens):,} tokens, {size}.")

    def _session_to_save(self, name: str) -> Session:
        """Return the session in the file that is named, or the present one."""
        present = self._conversation.session
        path = _path(name) if name else None
        if present is not None and (path is None or path.resolve() == present.path.resolve()):
            return present
        if path is None:
            raise YarnGGUFError("there is no session yet: /save FILE makes one, and saves to it from then on")
        if path.exists():
            raise YarnGGUFError(f"{path} exists: name another file, or remove it first")
        return open_session(self._llama, path)

    def _retry(self, _: str) -> None:
        if self._conversation.is_greedy:
            self._say("With --temp 0 the answer will be the same.")
        self._turn(self._conversation.retry, "the answer is as it was.")

    def _clear(self, _: str) -> None:
        self._conversation.clear()
        self._say("A new conversation. The cache keeps what was read until something else is.")
        session = self._conversation.session
        if session is not None and session.tokens:
            self._say(
                f"{session.path.name} keeps the old one until your next message: "
                "/save FILE first, to go on in another file."
            )

    def _help(self, _: str) -> None:
        table = Table.grid(padding=(0, 2))
        for name, command in COMMANDS.items():
            table.add_row(Text(f"/{name} {command.argument}"), command.help)
        table.add_row("/exit", "leave, as Ctrl-D does; a session is saved after each turn")
        table.add_row("Ctrl-C", "stop answering or reading, or clear the line")
        table.add_row("Alt-Enter", "a new line in a message")
        self._console.print(table)

    # ---- on the screen --------------------------------------------------------------------------

    def _say(self, text: str, style: str = "dim") -> None:
        self._console.print(text, style=style, markup=False)

    def _remedy(self, needed: int) -> str:
        """Return the remedy for a context that is too small for the conversation, or for its first text."""
        session, more = self._conversation.session, -(-needed // 1024) * 1024
        if not self._conversation.n_tokens:
            return f"Leave, and come back with -c {more}."
        keep = f"--session {quote(str(session.path))}" if session else "--session FILE"
        first = "" if session else "/save FILE, "
        back = f"{first}leave and come back with -c {more} {keep} --rebuild"
        return f"/clear begins anew; to go on, {back}, which reads the text again where it has to."

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        try:
            yield
        except ContextFullError as error:
            self._report(YarnGGUFError(f"{error}. {self._remedy(error.needed + 1024)}"))
        except (YarnGGUFError, OSError) as error:
            self._report(error)
        except RuntimeError as error:  # the library's own
            self._report(YarnGGUFError(str(error)))

    def _report(self, error: Exception) -> None:
        if not self._has_user:
            raise error
        self._say(message_of(error), "red")


class _Command(NamedTuple):
    run: Callable[[Chat, str], None]
    argument: str
    help: str


COMMANDS = {
    "load": _Command(Chat._load, "FILE", "read a document; your next message goes with it"),
    "context": _Command(Chat._context, "", "tokens used, the factor s, what is cached and saved"),
    "save": _Command(Chat._save, "[FILE]", "save to FILE, from now on after each turn"),
    "retry": _Command(Chat._retry, "", "another answer in the place of the last"),
    "clear": _Command(Chat._clear, "", "begin a new conversation"),
    "new": _Command(Chat._clear, "", "the same"),
    "help": _Command(Chat._help, "", "this list"),
}


def _path(name: str) -> Path:
    """Return the path of a name. A terminal writes a dropped file's name in quotes or with backslashes."""
    path = Path(name).expanduser()
    return path if path.exists() else Path(re.sub(r"\\(.)", r"\1", name.strip("'\""))).expanduser()
