"""From a prompt's text to its tokens, without loading the model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.gguf.header import read_header
from yarn_gguf.native.library import load
from yarn_gguf.native.log import native_reasons
from yarn_gguf.run.handles import Vocabulary

llama_cpp = load()

from llama_cpp import llama_chat_format  # noqa: E402  (after load, which chooses the library)

_ANSWER = "the answer that was given"
_BREAK = b"\x01"  # no token goes across it
_SPECIAL = (
    llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
    | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
    | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
)  # found in a text before it is tokenized


def prompt_tokens(model_path: str | Path, text: str, *, chat: bool, system: str | None = None) -> list[int]:
    """The tokens of `text`, which `chat` puts into the model's chat template as a user's, after `system`.

    A model without a template gets the text alone. Raises GGUFError or ModelLoadError.
    """
    with closing(load_vocabulary(model_path)) as model:
        template = model.metadata().get("tokenizer.chat_template")
        if not (chat and template):
            return model.tokenize(text.encode(), add_bos=model.add_bos_token(), special=False)
        messages = [{"role": "system", "content": system}] if system else []
        prompt = _formatted(model, template, [*messages, {"role": "user", "content": text}])
        return model.tokenize(prompt.encode(), add_bos=False, special=True)


def next_turn_tokens(
    model_path: str | Path, text: str, *, chat: bool, before: Sequence[int] = ()
) -> list[int]:
    """What comes after the model's last answer: its end, `text` as the user's next message, and so on.

    Without `chat`, or without a template, the text alone. before: the tokens up to there. Raises GGUFError
    or ModelLoadError, or YarnGGUFError for a template without answers.
    """
    with closing(load_vocabulary(model_path)) as model:
        template = model.metadata().get("tokenizer.chat_template")
        if not (chat and template):
            return following_tokens(model, text, before, special=False)
        turns = [("user", "a question"), ("assistant", _ANSWER), ("user", text)]
        prompt = _formatted(model, template, [{"role": role, "content": content} for role, content in turns])
        _, answer, rest = prompt.partition(_ANSWER)
        if not answer:
            raise YarnGGUFError(
                f"{model_path}: its chat template leaves out answers, so none can be gone on from: use --raw"
            )
        return following_tokens(model, rest, before)


def following_tokens(
    model: Vocabulary, text: str, before: Sequence[int], *, special: bool = True
) -> list[int]:
    """The tokens of `text` as they come in a text whose tokens so far are `before`.

    SentencePiece's tokenizers put a space in front of a text's beginning, and of what follows a special
    token. `text` alone would have one in any case.
    """
    if not _has_pieces(model) or _is_fresh(model, before):
        return model.tokenize(text.encode(), add_bos=False, special=special)
    head = model.tokenize(_BREAK, add_bos=False, special=special)
    return model.tokenize(_BREAK + text.encode(), add_bos=False, special=special)[len(head) :]


def spaces_put_after(model: Vocabulary, before: Sequence[int]) -> int:
    """Spaces that the first token of what comes after `before` has, and its text has not: 1 or 0."""
    if not _has_pieces(model) or not _is_fresh(model, before):
        return 0
    return len(model.tokenize(_BREAK, add_bos=False, special=True)) - 1


def _has_pieces(model: Vocabulary) -> bool:
    return model.vocab_type() == llama_cpp.LLAMA_VOCAB_TYPE_SPM


def _is_fresh(model: Vocabulary, before: Sequence[int]) -> bool:
    return not before or bool(model.token_get_attr(before[-1]) & _SPECIAL)


def load_vocabulary(model_path: str | Path) -> Vocabulary:
    """The model in the file without its weights, to be closed. Raises GGUFError or ModelLoadError."""
    read_header(model_path)  # a damaged file is refused here, with a clear message
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    with native_reasons(model_path):
        return Vocabulary(path_model=str(model_path), params=params, verbose=False)


def chat_formatter(model: Vocabulary, template: str) -> llama_chat_format.Jinja2ChatFormatter:
    """Called with messages=[{"role": …, "content": …}, …], it gives their text as `prompt`."""
    return llama_chat_format.Jinja2ChatFormatter(
        template=template,
        eos_token=model.token_get_text(model.token_eos()),
        bos_token=model.token_get_text(model.token_bos()),
    )


def _formatted(model: Vocabulary, template: str, messages: list[dict[str, str]]) -> str:
    return chat_formatter(model, template)(messages=messages).prompt
