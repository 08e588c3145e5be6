"""Shared by the tests of conversations: a text, templates, and ways to ask."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count, islice
from pathlib import Path

from libraries import PROSE

from yarn_gguf.run.llama import Llama
from yarn_gguf.session.conversation import Conversation

N = 12  # tokens of an answer
TEXT = PROSE.read_text(encoding="utf-8")[:6000]  # about 1500 tokens
REWRITES_ANSWERS = """
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content | upper if message.role == 'assistant' else message.content }}<|im_end|>
{% endfor -%}
<|im_start|>assistant

"""
ALTERNATES = """
{%- for message in messages -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate') }}
{%- endif -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
<|im_start|>assistant

"""


def opened(model: Path, n_ctx: int = 4096, **kwargs) -> Llama:
    settings = {"n_threads": 2, "verbose": False, "flash_attn": True, "n_batch": 64, **kwargs}
    return Llama(model, n_ctx=n_ctx, **settings)


def begun(llama: Llama, max_tokens: int | None = N, **kwargs) -> Conversation:
    return Conversation(llama, max_tokens=max_tokens, **{"sampling": {"temp": 0.0}, **kwargs})


def ask(conversation: Conversation, text: str) -> str:
    conversation.say(text)
    return "".join(conversation.answer())


def witness(llama: Llama, messages: list[dict[str, str]]) -> str:
    """Return llama-cpp-python's answer to `messages`, from an empty cache."""
    llama.reset()
    llama._ctx.kv_cache_clear()
    made = llama.create_chat_completion(messages=list(messages), temperature=0.0, max_tokens=N)
    return made["choices"][0]["message"]["content"]


def completed(llama: Llama) -> str:
    """Return the text of another request to the same Llama."""
    made = llama.create_completion("Once upon a time", max_tokens=N, temperature=0.0, stop=[])
    return made["choices"][0]["text"]


def cancelling(llama: Llama, after: int) -> Callable[[int, int], None]:
    """Return a progress callback that cancels the request from another thread at its `after`-th call."""
    counter = count(1)

    def report(done: int, total: int) -> None:
        if next(counter) == after:
            in_a_thread(llama.cancel)

    return report


def in_a_thread(do: Callable[[], object]) -> None:
    """Call `do` in another thread, and wait for it."""
    thread = threading.Thread(target=do)
    thread.start()
    thread.join()


def first(count: int, pieces: Iterator[str]) -> str:
    """Return the first `count` pieces of an answer, and abandon the rest."""
    with closing(pieces):
        return "".join(islice(pieces, count))


def cached(llama: Llama) -> list[int]:
    return llama.input_ids[: llama.n_tokens].tolist()
