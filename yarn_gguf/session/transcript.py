"""The messages of a conversation, and their text as the model has read it.

A text is tokenized from the last mark on that it begins with. So answers keep the tokens that the model
chose, and long documents are not tokenized again. A template may rewrite earlier turns: then an earlier mark
holds, or none.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.run.chat_template import ChatTemplate, Message, assistant, user
from yarn_gguf.run.handles import Vocabulary
from yarn_gguf.run.prompt import following_tokens

_SEAM = re.compile(r"(?<=[A-Za-z]) (?=[A-Za-z])")  # tokens end before a word, whatever comes behind
_TAIL = 400  # characters at the end of a document, in which a seam is looked for
_UNKNOWN = "an earlier answer"  # stands for the text of a session of which no messages are known


@dataclass(frozen=True)
class Mark:
    """The first `chars` characters of the conversation, with this digest, were read as `tokens` tokens."""

    chars: int
    digest: str
    tokens: int

    @classmethod
    def behind(cls, text: str, tokens: int) -> Mark:
        """Return the mark behind `text`."""
        return cls(len(text), _digest(text), tokens)

    def begins(self, text: str) -> bool:
        """Return whether `text` begins with the text up to this mark."""
        return len(text) >= self.chars and _digest(text[: self.chars]) == self.digest


class Transcript:
    """The messages so far, and the tokens of their text up to the last mark.

    messages: with the system's. draft: documents that were read, the beginning of the next
    message. tokens: of the text up to the last mark. began: when; chat templates tell the model this date.
    """

    def __init__(self, model: Vocabulary, system: str | None) -> None:
        self._model = model
        self.began = datetime.now()
        self.messages: list[Message] = [{"role": "system", "content": system}] if system else []
        self.draft = ""
        self.tokens: list[int] = []
        self._text = ""  # up to the last mark
        self._marks: list[Mark] = []
        self._resumed: list[Message] | None = None  # the messages as they were resumed
        self._hidden: Mark | None = None  # the end of a text of which no messages are known
        self._template = ChatTemplate(model, strftime=lambda form: self.began.strftime(form))

    @property
    def has_unknown(self) -> bool:
        """Whether tokens of a session come first, of which no messages are known."""
        return self._hidden is not None

    @property
    def known_messages(self) -> list[Message]:
        """The messages of this chat, without those that stand for unknown ones."""
        return self.messages[2:] if self.has_unknown else self.messages

    # ---- messages -> text ----------------------------------------------------------------------

    def question(self, content: str) -> list[Message]:
        """Return the messages with the user's next one: the draft, and `content`."""
        return [*self._answered, user(self.draft + content)]

    @property
    def _answered(self) -> list[Message]:
        """The messages. An empty answer stands where a session ended before it: many templates need one."""
        is_asked = bool(self.messages) and self.messages[-1]["role"] == "user"
        is_cut_short = is_asked and self.messages is self._resumed
        return [*self.messages, assistant("")] if is_cut_short else self.messages

    def unanswered(self) -> list[Message]:
        """Return the messages without the last answer."""
        return self.messages[:-1] if self.messages[-1]["role"] == "assistant" else self.messages

    def render(self, messages: list[Message]) -> str:
        """Return the text of `messages`, up to where the model answers. Raises YarnGGUFError."""
        return self._template.render(messages)

    def beginning_of(self, draft: str) -> str:
        """Return the text up to the end of `draft`, cut where tokens end whatever comes behind."""
        text = self._template.divide([*self._answered, user(draft)]).before
        known = self._marks[-1].chars if self._marks else 0
        seams = [match.start() for match in _SEAM.finditer(text, max(known, len(text) - _TAIL))]
        return text[: seams[-1]] if seams else text

    def begins(self, text: str) -> bool:
        """Return whether `text` begins with the text of which no messages are known, if there is such."""
        return self._hidden is None or self._hidden.begins(text)

    # ---- text -> tokens ------------------------------------------------------------------------

    def tokens_of(self, text: str) -> list[int]:
        """Return the tokens of `text`, from the last mark on that it begins with.

        Raises YarnGGUFError if it begins otherwise than a text of which no messages are known.
        """
        start = self._last_mark_in(text)
        before = self.tokens[: start.tokens]
        return [*before, *following_tokens(self._model, text[start.chars :], before)]

    def commit(self, text: str, tokens: list[int]) -> None:
        """The model has read `text` as `tokens`: put a mark behind it."""
        self._marks = [mark for mark in self._marks if mark.begins(text)]
        self._text, self.tokens = text, tokens
        self._marks.append(Mark.behind(text, len(tokens)))

    def add_answer(self, answer: str, tokens: list[int]) -> None:
        """Add an answer with the tokens that the model chose; none if it ended within a character."""
        self.messages.append(assistant(answer))
        if tokens:
            self.tokens = [*self.tokens, *tokens]
            self._text += answer
            self._marks.append(Mark.behind(self._text, len(self.tokens)))

    def _last_mark_in(self, text: str) -> Mark:
        marks = [mark for mark in self._marks if mark.begins(text)]
        if not self.begins(text):
            raise YarnGGUFError(
                f"{self._model.path_model}: its chat template rewrites earlier turns, and those from before "
                "this chat are not known: begin anew with /clear"
            )
        return marks[-1] if marks else Mark.behind("", 0)

    # ---- notes ---------------------------------------------------------------------------------

    def as_notes(self, cached: int) -> dict[str, Any]:
        """Return everything that JSON can hold. cached: tokens that the cache has of these."""
        return {
            "began": self.began.isoformat(),
            "messages": list(self.messages),
            "draft": self.draft,
            "hidden": self._hidden and asdict(self._hidden),
            "marks": [asdict(mark) for mark in self._marks if mark.tokens <= cached],
        }

    def resume(self, notes: dict[str, Any], tokens: list[int]) -> None:
        """Go on with a text of `tokens`. notes: those of as_notes; empty if no messages are known."""
        if notes:
            self._take_notes(notes, tokens)
        elif tokens:
            self._take_unknown(tokens)

    def _take_notes(self, notes: dict[str, Any], tokens: list[int]) -> None:
        self.began = datetime.fromisoformat(notes["began"])
        self.messages = self._resumed = list(notes["messages"])
        self.draft = notes["draft"]
        self._hidden = notes["hidden"] and Mark(**notes["hidden"])
        self._marks = [Mark(**mark) for mark in notes["marks"]]
        self.tokens = tokens[: self._marks[-1].tokens] if self._marks else []

    def _take_unknown(self, tokens: list[int]) -> None:
        """Take the tokens for those of a question and its answer."""
        self.messages = [user("a question"), assistant(_UNKNOWN)]
        try:
            text = self._template.divide([*self.messages, user("and so on")], at=1).before
            self._hidden = Mark.behind(text, len(tokens))
        except YarnGGUFError:  # the template leaves out answers: no text begins with this mark
            self._hidden = Mark(0, "", len(tokens))
        self._marks, self.tokens = [self._hidden], list(tokens)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
