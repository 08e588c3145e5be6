"""A conversation with a model: messages -> its chat template -> tokens, of which only the new ones are read.

No terminal here: what is shown, and when to stop, is up to the caller.
"""

from __future__ import annotations

import codecs
import ctypes
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from yarn_gguf import kv_state, native
from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.llama import Llama, Progress
from yarn_gguf.prompt import chat_formatter
from yarn_gguf.session import common_prefix

llama_cpp = native.load()

if TYPE_CHECKING:
    from yarn_gguf.session import Session

_HERE = "the text that goes on here"  # stands in the template where a text is cut off
_SEAM, _TAIL = re.compile(r"(?<=[A-Za-z]) (?=[A-Za-z])"), 400  # characters from the end of a document on
_MOST_ON_SAVING = 0.05  # of the time, while a long text is read


class ContextFullError(YarnGGUFError):
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

    def load(
        self, title: str, text: str, progress: Progress | None = None, is_stopped: Callable[[], bool] = bool
    ) -> bool:
        """Read a document ahead: the next message begins with it.

        False if is_stopped() became true, which is asked a batch: then the document is no part of the
        conversation, and what was read of it stays cached. Raises ContextFullError, with nothing changed.
        """
        draft = f"{self.draft}{title}:\n\n{text}\n\n"
        beginning, _, _ = self._rendered([*self.messages, _user(draft + _HERE)]).rpartition(_HERE)
        known = self._marks[-1].chars if self._marks else 0
        if not self._read(beginning[: _last_seam(beginning, known)], progress, is_stopped):
            return False
        self.draft = draft
        return True

    def say(self, text: str, progress: Progress | None = None, is_stopped: Callable[[], bool] = bool) -> bool:
        """Read `text`, the user's next message; `answer` comes next. As `load` in all else."""
        messages = [*self.messages, _user(self.draft + text)]
        if not self._read(self._rendered(messages), progress, is_stopped):
            return False
        self.messages, self.draft = messages, ""
        return True

    def retry(self, progress: Progress | None = None, is_stopped: Callable[[], bool] = bool) -> bool:
        """Take the last answer back; `answer` gives another. As `load` in all else."""
        if self.draft or not any(message["role"] == "user" for message in self.known_messages):
            raise YarnGGUFError("there is nothing yet to answer anew: ask something first")
        messages = self.messages[:-1] if self.messages[-1]["role"] == "assistant" else self.messages
        if not self._read(self._rendered(messages), progress, is_stopped):
            return False
        self.messages = messages
        return True

    def answer(self, is_stopped: Callable[[], bool] = bool) -> Iterator[str]:
        """The model's answer to the last message, piece by piece; is_stopped() is asked after each token.

        However it ends, closing the iterator included, what was answered is part of the conversation, unless
        something else was said meanwhile; `finish` says how it ended.
        """
        llama, pieces, tokens, asked = self._llama, _Pieces(), [], self._tokens
        room = llama.n_ctx() - len(self._tokens)
        most = room if self._max_tokens is None else min(room, self._max_tokens)
        llama.set_seed(self._seed)
        self._seed += 1
        self.finish = "stopped"
        llama._sampler = llama._init_sampler(**self._sampling)
        try:
            while True:
                token = llama.sample()
                if llama_cpp.llama_vocab_is_eog(llama._model.vocab, token):
                    self.finish = "stop"
                    break
                tokens.append(token)
                yield pieces.add(_bytes_of(llama, token))
                if is_stopped():
                    break
                if len(tokens) >= most:
                    self.finish = "full" if most == room else "length"
                    break
                llama.eval([token])
        finally:
            llama._sampler = None
            if self._tokens is asked:  # nothing was said since
                self._keep(pieces, tokens)

    # ---- the session ---------------------------------------------------------------------------

    def open(self, session: Session) -> None:
        """Go on with what `session` has: messages, or (of `run --session`) tokens of which none are known."""
        self.session = session
        notes = session.notes
        if notes is not None and notes.get("tokens") == len(session.tokens):
            self._take(notes, session.tokens)
        elif session.tokens:
            self.messages = [_user("a question"), {"role": "assistant", "content": _HERE}]
            before, _, _ = self._rendered([*self.messages, _user("and so on")]).partition(_HERE)
            self._hidden = Mark.of(before + _HERE, len(session.tokens))
            self._marks, self._tokens = [self._hidden], list(session.tokens)

    def save(self) -> None:
        """Bring the session's file up to date, if there is a session. Raises SessionError."""
        if self.session is None or not self._llama.n_tokens:
            return
        began = time.monotonic()
        self.session.notes = self._notes()
        self.session.save()
        self._saved_at = time.monotonic()
        self._saving_took = self._saved_at - began

    def _notes(self) -> dict[str, Any]:
        llama = self._llama
        cached = self.n_cached
        return {
            "tokens": llama.n_tokens,  # another who goes on from here knows nothing of these notes
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
        llama = self._llama
        return common_prefix(llama.input_ids[: llama.n_tokens], np.array(self._tokens, np.intc))

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        """Their text, up to where the model answers."""
        try:
            return self._formatter(messages=messages).prompt
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            raise YarnGGUFError(
                f"{self._llama.model_path}: its chat template refuses these messages: {error}"
            ) from error

    def _read(self, text: str, progress: Progress | None, is_stopped: Callable[[], bool]) -> bool:
        """Have the cache hold `text`; False if stopped before that, with the marks as they were."""
        llama = self._llama
        marks = [mark for mark in self._marks if mark.begins(text)]
        if self._hidden is not None and self._hidden not in marks:
            raise YarnGGUFError(
                f"{llama.model_path}: its chat template rewrites earlier turns, and those from before this "
                "chat are not known: begin anew with /clear"
            )
        start = marks[-1] if marks else Mark.of("", 0)
        rest = llama._model.tokenize(text[start.chars :].encode(), add_bos=False, special=True)
        tokens = [*self._tokens[: start.tokens], *rest]
        if len(tokens) >= llama.n_ctx():
            raise ContextFullError(len(tokens), llama.n_ctx())
        if not self._fill_cache(tokens, progress, is_stopped):
            return False
        self._text, self._tokens = text, tokens
        self._marks = [*marks, Mark.of(text, len(tokens))]
        return True

    def _fill_cache(
        self, tokens: list[int], progress: Progress | None, is_stopped: Callable[[], bool]
    ) -> bool:
        llama = self._llama
        common = common_prefix(llama.input_ids[: llama.n_tokens], np.array(tokens, np.intc))
        if tokens and common == len(tokens) and (common < llama.n_tokens or llama._requires_eval):
            common -= 1  # the answer begins with the logits of the last
        self._cut_cache(common)
        if llama._is_by_request:
            llama.reserve(min(llama.n_ctx(), len(tokens) + (self._max_tokens or 0)))
        rest = tokens[llama.n_tokens :]
        step = min(llama.n_batch, llama.context_params.n_ubatch)
        self._saved_at = time.monotonic()
        for start in range(0, len(rest), step):
            if is_stopped():
                return False
            llama.eval(rest[start : start + step])
            if progress is not None:
                progress(min(start + step, len(rest)), len(rest))
            self._save_now_and_then()
        return True

    def _cut_cache(self, length: int) -> None:
        """To its first `length` tokens, or to none where it cannot be cut."""
        llama = self._llama
        if length == llama.n_tokens:
            return
        if kv_state.is_divisible(llama) and llama._ctx.kv_cache_seq_rm(-1, length, -1):
            llama.n_tokens = length
            llama._requires_eval = True
        else:
            llama.reset()
            llama._ctx.kv_cache_clear()

    def _save_now_and_then(self) -> None:
        """So that a crash does not lose hours of reading."""
        pause = max(self.save_seconds, self._saving_took / _MOST_ON_SAVING)
        if self.session is not None and time.monotonic() - self._saved_at >= pause:
            self.save()

    def _keep(self, pieces: _Pieces, tokens: list[int]) -> None:
        """An answer, up to its last whole character."""
        llama = self._llama
        answer, count = pieces.whole
        self.messages.append({"role": "assistant", "content": answer})
        if count == 0:
            return
        self._tokens = [*self._tokens, *tokens[:count]]
        self._text += answer
        self._marks.append(Mark.of(self._text, len(self._tokens)))
        if llama.n_tokens + 1 == len(self._tokens) <= llama.n_ctx():
            llama.eval(self._tokens[-1:])  # where the end was not the model's, its last token is not read yet


class _Pieces:
    """The text of an answer's tokens, which may end within a character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text, self._count = "", 0
        self.whole = "", 0  # the text, and its tokens, up to the last whole character

    def add(self, data: bytes) -> str:
        piece = self._decoder.decode(data)
        self._text += piece
        self._count += 1
        if not self._decoder.getstate()[0]:
            self.whole = self._text, self._count
        return piece


def _bytes_of(llama: Llama, token: int) -> bytes:
    """Of its text. llama.detokenize has no room for more than 32."""
    buffer = ctypes.create_string_buffer(32)
    vocabulary = llama._model.vocab
    size = llama_cpp.llama_token_to_piece(vocabulary, token, buffer, len(buffer), 0, False)
    if size < 0:
        buffer = ctypes.create_string_buffer(-size)
        size = llama_cpp.llama_token_to_piece(vocabulary, token, buffer, len(buffer), 0, False)
    return buffer.raw[:size]


def _last_seam(text: str, known: int) -> int:
    """The last place after `known` characters where tokens end, whatever comes behind: before a word."""
    seams = [match.start() for match in _SEAM.finditer(text, max(known, len(text) - _TAIL))]
    return seams[-1] if seams else len(text)


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
