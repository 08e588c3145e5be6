"""The pass key test: does a model find a number that is hidden in a long text, at every depth?

The prompt is that of Mohtashami and Jaggi (arXiv 2305.16300, appendix), as in the YaRN paper's Table 5.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yarn_gguf.errors import YarnGGUFError

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will "
    "quiz you about the important information there."
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NAMES = ("red", "green", "blue", "white", "black", "grey", "brown", "golden")
ANSWER_TOKENS = 12


@dataclass(frozen=True)
class Style:
    """The style of a prompt.

    keys: the number of hidden keys. The prompt asks for one; the others have random places. chat: whether to
    use the model's chat template.
    """

    keys: int = 1
    chat: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.keys <= len(NAMES):
            raise YarnGGUFError(f"{self.keys} pass keys: from 1 to {len(NAMES)} can be hidden")


@dataclass(frozen=True)
class Trial:
    """A prompt of about `length` tokens, answer included, with the key `key` at `depth` (0 to 1)."""

    length: int
    depth: float
    key: str
    prompt: list[int]


def trials(
    llama: Llama, lengths: Sequence[int], depths: Sequence[float], count: int, style: Style, seed: int = 0
) -> Iterator[Trial]:
    """Yield `count` trials for each length and depth, in an order in which prompts share long prefixes.

    The same seed gives the same keys. Raises YarnGGUFError for a length without room for filler.
    """
    maker = _PromptMaker(llama, style)
    for length in lengths:
        for depth in depths:
            for i in range(count):
                yield maker.trial(length, depth, random.Random(f"{seed} {length} {depth} {i}"))


def answer(llama: Llama, prompt: list[int]) -> str:
    """Return the model's answer to `prompt`, by greedy decoding."""
    said = llama.create_completion(prompt, max_tokens=ANSWER_TOKENS, temperature=0.0)
    assert isinstance(said, dict)  # no stream
    return said["choices"][0]["text"]


def is_right(said: str, key: str) -> bool:
    """Return whether the first number in an answer is the key."""
    number = re.search(r"\d+", said)
    return number is not None and number[0] == key


# ----------------------------------------------------------------------------------------------


class _PromptMaker:
    def __init__(self, llama: Llama, style: Style) -> None:
        self._llama, self._style = llama, style
        before, after = _chat_frame(llama) if style.chat else ("", "")
        bos = [llama.token_bos()] if llama.vocabulary.add_bos_token() and not style.chat else []
        self._head = bos + llama.tokenize(f"{before}{TASK}\n".encode(), add_bos=False, special=True)
        self._filler = self._tokens(f" {FILLER}")
        self._after = after

    def trial(self, length: int, depth: float, chance: random.Random) -> Trial:
        keys = [str(chance.randint(10000, 99999)) for _ in range(self._style.keys)]
        names = chance.sample(NAMES, len(keys)) if len(keys) > 1 else [""]
        places = [depth, *(chance.random() for _ in keys[1:])]
        needles = [self._tokens(_needle(key, name)) for key, name in zip(keys, names, strict=True)]
        tail = self._tokens(_question(names[0], self._after))
        fixed = len(self._head) + sum(map(len, needles)) + len(tail) + ANSWER_TOKENS
        units = (length - fixed) // len(self._filler)
        if units < 1:
            raise YarnGGUFError(
                f"{length} tokens have no room for a text: the rest of the prompt takes {fixed}"
            )
        at = sorted((round(place * units), i) for i, place in enumerate(places))
        body: list[int] = []
        done = 0
        for unit, i in at:
            body += self._filler * (unit - done) + needles[i]
            done = unit
        body += self._filler * (units - done)
        return Trial(length, depth, keys[0], self._head + body + tail)

    def _tokens(self, text: str) -> list[int]:
        """Return the tokens of `text` within the prompt: without the space that SentencePiece adds."""
        from yarn_gguf.run.prompt import following_tokens  # loads the native library

        return following_tokens(self._llama.vocabulary, text, self._head)


def _needle(key: str, name: str) -> str:
    of = f" of {name}" if name else ""
    return f"\nThe pass key{of} is {key}. Remember it. {key} is the pass key{of}.\n"


def _question(name: str, after: str) -> str:
    of = f" of {name}" if name else ""
    return f"\nWhat is the pass key{of}?{after} The pass key{of} is"


def _chat_frame(llama: Llama) -> tuple[str, str]:
    """Return the text that the model's chat template puts before and after a user's message.

    Raises YarnGGUFError if it has none.
    """
    from yarn_gguf.run.chat_template import ChatTemplate, has_chat_template, user  # loads the library

    if not has_chat_template(llama.vocabulary):
        raise YarnGGUFError(f"{llama.model_path} has no chat template: leave --chat out")
    halves = ChatTemplate(llama.vocabulary).divide([user("")])
    return halves.before, halves.after.rstrip(" ")
