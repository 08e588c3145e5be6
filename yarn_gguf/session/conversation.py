"""A conversation with a model: messages -> its chat template -> tokens, of which only the new ones are read.

No terminal here: what is shown, and when to stop, is up to the caller.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import jinja2
import numpy as np

from yarn_gguf.disk.fingerprint import token_digest
from yarn_gguf.errors import NoRoomError, YarnGGUFError
from yarn_gguf.progress import Progress
from yarn_gguf.run.cached_text import common_prefix
from yarn_gguf.run.handles import bytes_of
from yarn_gguf.run.llama import Llama, llama_cpp
from yarn_gguf.run.prompt import chat_formatter, following_tokens, spaces_put_after
from yarn_gguf.session.session import Session

_HERE = "the text that goes on here"  # stands in the template where a text is cut off
_SEAM, _TAIL = re.compile(r"(?<=[A-Za-z]) (?=[A-Za-z])"), 400  # characters from the end of a document on
_MOST_ON_SAVING = 0.05  # of the time, while a long text is read


class ContextFullError(NoRoomError):
    """More tokens than the context holds."""

    def __init__(self, needed: int, n_ctx: int) -> None:
        self.needed = needed
        super().__init__(f"the conversation would have {needed:,} tokens, and the context holds {n_ctx:,}")


@dataclass(frozen=True)
class Mark:
    """The first `chars` characters of the conversation, with this digest, were read as so many tokens."""

    chars: int
    digest: str
    tokens: int

    @classmethod
    def of(cls, text: str, tokens: int) -> Mark:
        """The mark behind `text`."""
        return cls(len(text), _digest(text), tokens)

    def begins(self, text: str) -> bool:
        """Whether `text` begins with what was read up to this mark."""
        return len(text) >= self.chars and _digest(text[: self.chars]) == self.digest


class Conversation:
    """What was said, and what of it the model has read.

    A text is tokenized from the last mark on that it begins with: answers keep the tokens that the model
    chose, and long documents are not tokenized again. What differs from the cache is cut from it and read.
    So a template may rewrite earlier turns. A cache that cannot be cut (recurrent layers) is read anew.

    Each call is one request of `llama`, `answer` from its first token to its last: those of other threads
    wait, or end the answer, as they do any stream. What they left in the cache is replaced, and what they
    replaced is read again. `llama.cancel()`, from any thread, ends the call under way, which raises
    Cancelled: what was read stays cached, what was answered stays said, and the conversation goes on. A
    Conversation itself is for one thread at a time.

    system: the first message, for templates that take one. max_tokens: of an answer; None: what fits.
    sampling: temp, top_k, top_p, min_p, repeat_penalty, as `Llama.sample` takes them. seed: of the first
    answer; each further one has the next. Raises YarnGGUFError for a model without a chat template.
    """

    def __init__(
        self,
        llama: Llama,
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
        sampling: dict[str, float] | None = None,
    ) -> None:
        template = llama.metadata.get("tokenizer.chat_template")
        if not template:
            raise YarnGGUFError(
                f"{llama.model_path} has no chat template: use yarn-gguf run --raw, which needs none"
            )
        self._llama = llama
        self._formatter = chat_formatter(llama._model, template)
        self._formatter.strftime_now = lambda form: self._began.strftime(form)  # not today, day after day
        self._system, self._max_tokens, self._seed = system, max_tokens, seed
        self._sampling = sampling or {}
        self.session: Session | None = None
        self.save_seconds = 60.0  # while a long text is read; less often, where saving takes long
        self._saved_at = self._saving_took = 0.0
        self.finish = ""  # of the last answer: "stop", "stopped", "length" (max_tokens) or "full" (context)
        self._wanted: list[int] = []  # the cache has a beginning of it, unless others changed it
        self.clear()

    def clear(self) -> None:
        """Begin anew. The cache keeps what it has until something else is read."""
        self._began = datetime.now()
        self.messages: list[dict[str, str]] = []
        if self._system:
            self.messages.append({"role": "system", "content": self._system})
        self.draft = ""  # documents that were read, the beginning of the next message
        self._hidden: Mark | None = None  # the end of a text of which no messages are known
        self._text, self._tokens = "", []  # as far as the last mark
        self._marks: list[Mark] = []

    # ---- what a user does ----------------------------------------------------------------------

    def load(self, title: str, text: str, progress: Progress | None = None) -> None:
        """Read a document ahead: the next message begins with it.

        progress: called as progress(done, total) with the tokens that are read; None for that of the Llama.
        Raises ContextFullError, with nothing changed; and Cancelled, or what `progress` does: then the
        document is no part of the conversation, and what was read of it stays cached.
        """
        draft = f"{self.draft}{title}:\n\n{text}\n\n"
        beginning, _, _ = self._rendered([*self.messages, _user(draft + _HERE)]).rpartition(_HERE)
        known = self._marks[-1].chars if self._marks else 0
        self._read(beginning[: _last_seam(beginning, known)], progress)
        self.draft = draft

    def say(self, text: str, progress: Progress | None = None) -> None:
        """Read `text`, the user's next message; `answer` comes next. As `load` in all else."""
        messages = [*self.messages, _user(self.draft + text)]
        self._read(self._rendered(messages), progress)
        self.messages, self.draft = messages, ""

    def retry(self, progress: Progress | None = None) -> None:
        """Take the last answer back; `answer` gives another. As `load` in all else."""
        if self.draft or not any(message["role"] == "user" for message in self.known_messages):
            raise YarnGGUFError("there is nothing yet to answer anew: ask something first")
        messages = self.messages[:-1] if self.messages[-1]["role"] == "assistant" else self.messages
        self._read(self._rendered(messages), progress)
        self.messages = messages

    def answer(self) -> Iterator[str]:
        """The model's answer to the last message, piece by piece.

        However it ends, closing the iterator and Cancelled included, what was answered is part of the
        conversation, unless something else was said meanwhile; `finish` says how it ended.
        """
        pieces, asked = _Pieces(), self._tokens
        self.finish = "stopped"
        try:
            yield from self._llama._turns.through(self._answered(pieces))
        finally:
            if self._tokens is asked:  # nothing was said since
                self._keep(pieces)

    def _answered(self, pieces: _Pieces) -> Iterator[str]:
        llama, asked = self._llama, self._tokens
        self._wanted = list(asked)
        room = llama.n_ctx() - len(asked)
        most = room if self._max_tokens is None else min(room, self._max_tokens)
        spaces = spaces_put_after(llama._model, asked)
        llama.set_seed(self._seed)
        self._seed += 1
        llama._turns.request.answer = self._max_tokens or 0
        for token in llama.generate(asked, **self._sampling):  # it reads what of `asked` is not cached
            if llama_cpp.llama_vocab_is_eog(llama._model.vocab, token):
                self.finish = "stop"
                return
            self._wanted.append(token)
            yield pieces.add(token, bytes_of(llama._model, token, 0 if pieces.tokens else spaces))
            if len(pieces.tokens) >= most:
                self.finish = "full" if most == room else "length"
                return

    # ---- the session ---------------------------------------------------------------------------

    def open(self, session: Session) -> None:
        """Go on with what `session` has: messages, or (of `run --session`) tokens of which none are known."""
        self.session, self._wanted = session, session.tokens
        if session.notes_of_text:
            self._take(session.notes_of_text, session.tokens)
        elif session.tokens:
            self.messages = [_user("a question"), {"role": "assistant", "content": _HERE}]
            before, _, _ = self._rendered([*self.messages, _user("and so on")]).partition(_HERE)
            self._hidden = Mark.of(before + _HERE, len(session.tokens))
            self._marks, self._tokens = [self._hidden], list(session.tokens)

    def save(self) -> None:
        """Bring the session's file up to date, if there is a session. Raises SessionError.

        What of the conversation is not cached is read first: an answer's last token, or all of it, where
        another request on the Llama took its place.
        """
        if self.session is None:
            return
        with self._llama._turns.aside():
            if not self._is_cached and self._tokens:
                with self._llama._turns.take():
                    self._fill_cache(self._tokens)
            if self._is_cached:
                self._save()

    def _save(self) -> None:
        began = time.monotonic()
        self.session.notes = self._notes()
        self.session.save(replace=True)  # what it has now, after /clear too
        self._saved_at = time.monotonic()
        self._saving_took = self._saved_at - began

    def _notes(self) -> dict[str, Any]:
        llama = self._llama
        cached = self.n_cached
        return {
            "text": token_digest(llama.input_ids[: llama.n_tokens]),  # whoever goes on from it has another
            "is_whole": not self.draft and cached == len(self._tokens) == llama.n_tokens,
            "began": self._began.isoformat(),
            "messages": list(self.messages),
            "draft": self.draft,
            "hidden": self._hidden and asdict(self._hidden),
            "marks": [asdict(mark) for mark in self._marks if mark.tokens <= cached],
        }

    def _take(self, notes: dict[str, Any], tokens: list[int]) -> None:
        self._began = datetime.fromisoformat(notes["began"])
        self.messages, self.draft = list(notes["messages"]), notes["draft"]
        self._hidden = notes["hidden"] and Mark(**notes["hidden"])
        self._marks = [Mark(**mark) for mark in notes["marks"]]
        self._tokens = tokens[: self._marks[-1].tokens] if self._marks else []

    # ---- text -> tokens -> cache ----------------------------------------------------------------

    @property
    def known_messages(self) -> list[dict[str, str]]:
        """Those of this chat. Those before it stand for tokens of a session of which none are known."""
        return self.messages[2:] if self.has_unknown else self.messages

    @property
    def has_unknown(self) -> bool:
        """Whether there are such."""
        return self._hidden is not None

    @property
    def is_greedy(self) -> bool:
        """Whether the same question always gets the same answer."""
        return self._sampling.get("temp") == 0

    @property
    def n_tokens(self) -> int:
        """Tokens of the conversation so far."""
        return len(self._tokens)

    @property
    def n_cached(self) -> int:
        """Those of them that the cache has."""
        return self._cached_of(self._tokens)

    def _cached_of(self, tokens: list[int]) -> int:
        llama = self._llama
        return common_prefix(llama.input_ids[: llama.n_tokens], np.array(tokens, np.intc))

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        """Their text, up to where the model answers."""
        try:
            return self._formatter(messages=messages).prompt
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            raise YarnGGUFError(
                f"{self._llama.model_path}: its chat template refuses these messages: {error}"
            ) from error

    def _read(self, text: str, progress: Progress | None) -> None:
        """Have the cache hold `text`; where that is cancelled, the marks stay as they were."""
        llama = self._llama
        marks = [mark for mark in self._marks if mark.begins(text)]
        if self._hidden is not None and self._hidden not in marks:
            raise YarnGGUFError(
                f"{llama.model_path}: its chat template rewrites earlier turns, and those from before this "
                "chat are not known: begin anew with /clear"
            )
        start = marks[-1] if marks else Mark.of("", 0)
        before = self._tokens[: start.tokens]
        tokens = [*before, *following_tokens(llama._model, text[start.chars :], before)]
        if len(tokens) >= llama.n_ctx():
            raise ContextFullError(len(tokens), llama.n_ctx())
        with llama._turns.take():
            self._fill_cache(tokens, progress)
        self._text, self._tokens = text, tokens
        self._marks = [*marks, Mark.of(text, len(tokens))]

    def _fill_cache(self, tokens: list[int], progress: Progress | None = None) -> None:
        """Have the cache hold `tokens` alone; saving now and then."""
        llama, common = self._llama, self._cached_of(tokens)
        self._wanted = tokens
        if common < llama.n_tokens:
            llama.n_tokens, llama._requires_eval = common, True
        if llama._is_by_request:
            llama.reserve(min(llama.n_ctx(), len(tokens) + (self._max_tokens or 0)))
        progress, self._saved_at = progress or llama.progress, time.monotonic()

        def report(done: int, total: int) -> None:
            self._save_now_and_then()
            if progress is not None:
                progress(done, total)

        llama.prefill(tokens[common:], report)

    @property
    def _is_cached(self) -> bool:
        """Whether the cache is as this conversation left it, and lacks nothing of it."""
        cached = self._cached_of(self._wanted)
        is_whole = self._wanted is not self._tokens or cached == len(self._tokens)
        return is_whole and 0 < cached == self._llama.n_tokens

    def _save_now_and_then(self) -> None:
        """So that a crash does not lose hours of reading."""
        pause = max(self.save_seconds, self._saving_took / _MOST_ON_SAVING)
        if self.session is not None and time.monotonic() - self._saved_at >= pause:
            self._save()

    def _keep(self, pieces: _Pieces) -> None:
        """An answer, up to its last whole character."""
        answer, count = pieces.whole
        self.messages.append({"role": "assistant", "content": answer})
        if count == 0:
            return
        self._tokens = self._wanted = [*self._tokens, *pieces.tokens[:count]]
        self._text += answer
        self._marks.append(Mark.of(self._text, len(self._tokens)))


class _Pieces:
    """The text of an answer's tokens, which may end within a character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self.tokens: list[int] = []
        self.whole = "", 0  # the text, and its tokens, up to the last whole character

    def add(self, token: int, data: bytes) -> str:
        piece = self._decoder.decode(data)
        self._text += piece
        self.tokens.append(token)
        if not self._decoder.getstate()[0]:
            self.whole = self._text, len(self.tokens)
        return piece


def _last_seam(text: str, known: int) -> int:
    """The last place after `known` characters where tokens end, whatever comes behind: before a word."""
    seams = [match.start() for match in _SEAM.finditer(text, max(known, len(text) - _TAIL))]
    return seams[-1] if seams else len(text)


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
