"""An answer as it is generated: its tokens, and the text that they complete."""

from __future__ import annotations

import codecs
from collections.abc import Generator, Sequence
from typing import Any

from yarn_gguf.run.handles import bytes_of
from yarn_gguf.run.llama import Llama
from yarn_gguf.run.prompt import spaces_put_after


class Answer:
    """The tokens of an answer to a prompt, and their text. A text may end within a character.

    tokens: so far. whole: the text, and the number of its tokens, up to the last whole character. finish: how
    it ended: "stop" (the model's own end), "length" (`most` tokens) or "stopped" (not yet, or by the caller).
    """

    def __init__(self, llama: Llama, prompt: Sequence[int], most: int, sampling: dict[str, Any]) -> None:
        """most: tokens. sampling: as Llama.sample takes it."""
        self._llama, self._prompt, self._most, self._sampling = llama, prompt, most, sampling
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self.tokens: list[int] = []
        self.whole = "", 0
        self.finish = "stopped"

    def pieces(self) -> Generator[str, None, None]:
        """Generate the answer and yield its text piece by piece, one a token."""
        vocabulary = self._llama.vocabulary
        spaces = spaces_put_after(vocabulary, self._prompt)
        for token in self._llama.generate(self._prompt, **self._sampling):
            if vocabulary.is_end(token):
                self.finish = "stop"
                return
            yield self.add(token, bytes_of(vocabulary, token, 0 if self.tokens else spaces))
            if len(self.tokens) >= self._most:
                self.finish = "length"
                return

    def add(self, token: int, data: bytes) -> str:
        """Add a token; return the characters that it completes."""
        piece = self._decoder.decode(data)
        self._text += piece
        self.tokens.append(token)
        if not self._decoder.getstate()[0]:
            self.whole = self._text, len(self.tokens)
        return piece
