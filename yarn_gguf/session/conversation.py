"""A conversation with a model: messages -> its chat template -> tokens, of which only the new ones are read.

No terminal here: the caller decides what to show, and when to stop.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from yarn_gguf.disk.fingerprint import token_digest
from yarn_gguf.errors import NoRoomError, YarnGGUFError
from yarn_gguf.progress import Progress
from yarn_gguf.run.answer import Answer
from yarn_gguf.run.chat_template import Message, has_chat_template
from yarn_gguf.run.llama import Llama
from yarn_gguf.session.session import Session
from yarn_gguf.session.transcript import Transcript

_MOST_ON_SAVING = 0.05  # of the time, while a long text is read


class ContextFullError(NoRoomError):
    """More tokens than the context holds."""

    def __init__(self, needed: int, n_ctx: int) -> None:
        self.needed = needed
        super().__init__(f"the conversation would have {needed:,} tokens, and the context holds {n_ctx:,}")


class Conversation:
    """A conversation with a model, which reads its text as it grows.

    Each call is one request of `llama`; `answer` is one from its first token to its last. Requests of other
    threads wait, or end the answer, as they do any stream. They may replace the cached text: the next call
    reads its own text again. `llama.cancel()`, from any thread, ends the call under way, which raises
    Cancelled: its tokens stay cached, its answer stays said, and the conversation goes on. A Conversation
    itself is for one thread at a time.

    system: the first message, for templates that take one. max_tokens: of an answer; None: what fits.
    sampling: temp, top_k, top_p, min_p, repeat_penalty, as `Llama.sample` takes them. seed: of the first
    answer; each further one has the next. Raises YarnGGUFError for a model without a chat template.

    transcript: the messages so far, and their tokens. session: the session that is saved to. save_seconds:
    between saves while a long text is read; more if a save takes long. finish: how the last answer ended:
    "stop", "stopped", "length" (max_tokens) or "full" (the context).
    """

    def __init__(
        self,
        llama: Llama,
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        if not has_chat_template(llama.vocabulary):
            raise YarnGGUFError(
                f"{llama.model_path} has no chat template: use yarn-gguf run --raw, which needs none"
            )
        self._llama = llama
        self._system, self._max_tokens, self._seed = system, max_tokens, seed
        self._sampling = sampling or {}
        self.session: Session | None = None
        self.save_seconds = 60.0
        self.finish = ""
        self._timer = SaveTimer()
        self._target: list[int] = []  # the cache has a beginning of it, unless others changed it
        self.clear()

    def clear(self) -> None:
        """Begin anew. The cache keeps its text until another is read."""
        self.transcript = Transcript(self._llama.vocabulary, self._system)

    # ---- what a user does ----------------------------------------------------------------------

    def load(self, title: str, text: str, progress: Progress | None = None) -> None:
        """Read a document ahead: the next message begins with it.

        progress: called as progress(done, total) with the tokens that are read; None for that of the Llama.
        Raises ContextFullError, with nothing changed. Raises Cancelled, and exceptions of `progress`: then
        the document is no part of the conversation, and its tokens that were read stay cached.
        """
        draft = f"{self.transcript.draft}{title}:\n\n{text}\n\n"
        self._read(self.transcript.beginning_of(draft), progress)
        self.transcript.draft = draft

    def say(self, text: str, progress: Progress | None = None) -> None:
        """Read `text`, the user's next message; `answer` comes next. As `load` in all else."""
        messages = self.transcript.question(text)
        self._read(self.transcript.render(messages), progress)
        self.transcript.messages, self.transcript.draft = messages, ""

    def retry(self, progress: Progress | None = None) -> None:
        """Take the last answer back; `answer` gives another. As `load` in all else."""
        asked = any(message["role"] == "user" for message in self.known_messages)
        if self.draft or not asked:
            raise YarnGGUFError("there is nothing yet to answer anew: ask something first")
        messages = self.transcript.unanswered()
        self._read(self.transcript.render(messages), progress)
        self.transcript.messages = messages

    def answer(self) -> Generator[str, None, None]:
        """Yield the model's answer to the last message, piece by piece.

        However it ends, closing the iterator and Cancelled included, the pieces so far are part of the
        conversation, unless something else was said meanwhile. `finish` says how it ended.
        """
        asked, room = self.tokens, self._llama.n_ctx() - self.n_tokens
        most = room if self._max_tokens is None else min(room, self._max_tokens)
        said = Answer(self._llama, asked, most, self._sampling)
        self.finish = said.finish
        try:
            yield from self._llama.turns.through(self._said(said, asked))
        finally:
            self.finish = "full" if said.finish == "length" and most == room else said.finish
            if self.tokens is asked:  # nothing else was said since
                self._keep(said)

    def _said(self, said: Answer, asked: list[int]) -> Generator[str, None, None]:
        """Yield the pieces of an answer. The tokens of `asked` that are not cached are read first."""
        self._llama.set_seed(self._seed)
        self._seed += 1
        self._llama.turns.request.answer = self._max_tokens or 0
        self._target = list(asked)
        for piece in said.pieces():
            self._target.append(said.tokens[-1])
            yield piece

    def _keep(self, said: Answer) -> None:
        """Add an answer, up to its last whole character."""
        text, count = said.whole
        self.transcript.add_answer(text, said.tokens[:count])
        if count:
            self._target = self.tokens

    # ---- what is shown -------------------------------------------------------------------------

    @property
    def messages(self) -> list[Message]:
        """The messages so far."""
        return self.transcript.messages

    @property
    def draft(self) -> str:
        """Documents that were read, the beginning of the next message."""
        return self.transcript.draft

    @property
    def known_messages(self) -> list[Message]:
        """The messages of this chat, without those that stand for tokens of a session."""
        return self.transcript.known_messages

    @property
    def has_unknown(self) -> bool:
        """Whether tokens of a session come first, of which no messages are known."""
        return self.transcript.has_unknown

    @property
    def is_greedy(self) -> bool:
        """Whether the same question always gets the same answer."""
        return self._sampling.get("temp") == 0

    @property
    def tokens(self) -> list[int]:
        """The tokens of the conversation so far."""
        return self.transcript.tokens

    @property
    def n_tokens(self) -> int:
        """The number of its tokens so far."""
        return len(self.tokens)

    @property
    def n_cached(self) -> int:
        """The number of these that the cache has."""
        return self._llama.cached_text.match(self.tokens)

    # ---- the session ---------------------------------------------------------------------------

    def open(self, session: Session) -> None:
        """Go on with a session: with its messages, or with tokens of which no messages are known."""
        self.session, self._target = session, session.tokens
        self.transcript.resume(session.notes_of_text, session.tokens)

    def save(self) -> None:
        """Bring the session's file up to date, if there is a session. Raises SessionError.

        Tokens of the conversation that are not cached are read first: an answer's last token, or all of
        them, if another request on the Llama took their place.
        """
        if self.session is None:
            return
        with self._llama.turns.between():
            if not self._is_cached and self.tokens:
                with self._llama.turns.take():
                    self._fill_cache(self.tokens)
            if self._is_cached:
                self._save()

    def _save(self) -> None:
        assert self.session is not None
        with self._timer.saving():
            self.session.notes = self._notes()
            self.session.save(replace=True)  # the present text, after /clear too

    def _notes(self) -> dict[str, Any]:
        text, cached = self._llama.cached_text, self.n_cached
        return {
            "text": token_digest(text.tokens.tolist()),  # of the text to which these notes belong
            "is_whole": not self.draft and cached == self.n_tokens == len(text),
            **self.transcript.as_notes(cached),
        }

    # ---- text -> cache -------------------------------------------------------------------------

    def _read(self, text: str, progress: Progress | None) -> None:
        """Have the cache hold `text`. If that is cancelled, the transcript stays as it was."""
        tokens = self.transcript.tokens_of(text)
        if len(tokens) >= self._llama.n_ctx():
            raise ContextFullError(len(tokens), self._llama.n_ctx())
        with self._llama.turns.take():
            self._fill_cache(tokens, progress)
        self.transcript.commit(text, tokens)

    def _fill_cache(self, tokens: list[int], progress: Progress | None = None) -> None:
        """Have the cache hold `tokens` alone. The session is saved now and then, between two pieces."""
        llama = self._llama
        self._target, progress = tokens, progress or llama.progress
        common = llama.cached_text.match(tokens)
        llama.cached_text.cut(common)
        llama.reserve_for_request(min(llama.n_ctx(), len(tokens) + (self._max_tokens or 0)))
        self._timer.begin()
        for done, total in llama.prefill_steps(tokens[common:]):
            if self.session is not None and self._timer.is_due(self.save_seconds):
                self._save()  # so that a crash does not lose hours of reading
            if progress is not None:
                with llama.turns.reporting():
                    progress(done, total)

    @property
    def _is_cached(self) -> bool:
        """Whether the cache is as this conversation left it, and lacks none of its tokens."""
        cached = self._llama.cached_text.match(self._target)
        is_whole = self._target is not self.tokens or cached == self.n_tokens
        return is_whole and 0 < cached == len(self._llama.cached_text)


class SaveTimer:
    """When to save again while a long text is read. In seconds."""

    def __init__(self) -> None:
        self._last = self._took = 0.0

    def begin(self) -> None:
        """Count from now on."""
        self._last = time.monotonic()

    def is_due(self, pause: float) -> bool:
        """Return whether `pause` is over, or a longer one if a save takes long."""
        return time.monotonic() - self._last >= max(pause, self._took / _MOST_ON_SAVING)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Note how long the save in the block takes."""
        began = time.monotonic()
        yield
        self._last = time.monotonic()
        self._took = self._last - began
