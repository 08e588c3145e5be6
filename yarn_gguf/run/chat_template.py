"""A model's chat template: messages become the text of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jinja2

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.run.handles import Vocabulary

from llama_cpp.llama_chat_format import Jinja2ChatFormatter  # isort: skip  (handles chooses the library)

Message = dict[str, str]  # role and content

KEY = "tokenizer.chat_template"
_SEAM = "the text that goes on here"  # stands in a content where a rendered text is divided


class Halves(NamedTuple):
    """A rendered text, divided behind the content of a message.

    strips: whether the template removes spaces at the end of a content.
    """

    before: str
    after: str
    strips: bool


class ChatTemplate:
    """The chat template in a model's file.

    strftime: formats the time that the template is told, by default the present. Raises YarnGGUFError for a
    model without a chat template.
    """

    def __init__(self, model: Vocabulary, *, strftime: Callable[[str], str] | None = None) -> None:
        self._path = model.path_model
        template = model.metadata().get(KEY)
        if not template:
            raise YarnGGUFError(f"{self._path} has no chat template")
        self._strftime = strftime
        self._formatters = {answers: self._formatter(model, template, answers) for answers in (False, True)}

    def _formatter(self, model: Vocabulary, template: str, answers: bool) -> Any:
        def text(token: int) -> str:
            return model.token_get_text(token) if token >= 0 else ""

        try:
            made: Any = Jinja2ChatFormatter(
                template=template,
                eos_token=text(model.token_eos()),
                bos_token=text(model.token_bos()),
                add_generation_prompt=answers,
            )
        except jinja2.TemplateError as error:
            raise YarnGGUFError(f"{self._path}: its chat template cannot be used: {error}") from error
        if self._strftime is not None:
            made.strftime_now = self._strftime
        return made

    def render(self, messages: Sequence[Message], *, answers: bool = True) -> str:
        """Return the text of `messages`, up to where the model answers; else up to their end.

        Raises YarnGGUFError if the template refuses them.
        """
        try:
            return self._formatters[answers](messages=[*messages]).prompt
        except Exception as error:  # a template is code: it may divide by 0, or recurse without end
            reason = str(error) or type(error).__name__
            message = f"{self._path}: its chat template refuses these messages: {reason}"
            raise YarnGGUFError(message) from error

    def divide(self, messages: Sequence[Message], at: int = -1, *, answers: bool = True) -> Halves:
        """Render `messages` and divide the text behind the content of message `at`.

        Raises YarnGGUFError if the template refuses the messages, or leaves out this one.
        """
        texts, mark = [], _SEAM
        while any(mark in str(each["content"]) for each in messages):  # such as those about this very file
            mark += "."
        for seam in (mark, f"{mark} "):
            marked = [dict(each) for each in messages]
            marked[at]["content"] += seam
            texts.append(self.render(marked, answers=answers))
        count = texts[0].count(mark)
        if count != 1:
            what = "leaves out" if count == 0 else "repeats"
            role = {"assistant": "answers"}.get(messages[at]["role"], f"messages of {messages[at]['role']}")
            raise YarnGGUFError(f"{self._path}: its chat template {what} {role}")
        before, _, after = texts[0].partition(mark)
        return Halves(before, after, strips=texts[0] == texts[1])


def has_chat_template(model: Vocabulary) -> bool:
    """Return whether the model's file has a chat template."""
    return bool(model.metadata().get(KEY))


def user(content: str) -> Message:
    """Return a message of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """Return a message of the model."""
    return {"role": "assistant", "content": content}
