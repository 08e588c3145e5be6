"""From a prompt's text to its tokens, without loading the model's weights."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from yarn_gguf import native
from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.gguf_file import read_header

llama_cpp = native.load()

from llama_cpp import _internals, llama_chat_format  # noqa: E402  (after native.load, which chooses the library)

_ANSWER = "the answer that was given"


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


def next_turn_tokens(model_path: str | Path, text: str, *, chat: bool) -> list[int]:
    """What comes after the model's last answer: its end, `text` as the user's next message, and so on.

    Without `chat`, or without a template, the text alone. Raises GGUFError or ModelLoadError, or
    YarnGGUFError for a template without answers.
    """
    with closing(load_vocabulary(model_path)) as model:
        template = model.metadata().get("tokenizer.chat_template")
        if not (chat and template):
            return model.tokenize(text.encode(), add_bos=False, special=False)
        turns = [("user", "a question"), ("assistant", _ANSWER), ("user", text)]
        prompt = _formatted(model, template, [{"role": role, "content": content} for role, content in turns])
        _, answer, rest = prompt.partition(_ANSWER)
        if not answer:
            raise YarnGGUFError(
                f"{model_path}: its chat template leaves out answers, so none can be gone on from: use --raw"
            )
        return model.tokenize(rest.encode(), add_bos=False, special=True)


def load_vocabulary(model_path: str | Path) -> _internals.LlamaModel:
    """The model in the file without its weights, to be closed. Raises GGUFError or ModelLoadError."""
    read_header(model_path)  # a damaged file is refused here, with a clear message
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    with native.native_reasons(model_path):
        return _internals.LlamaModel(path_model=str(model_path), params=params, verbose=False)


def chat_formatter(model: _internals.LlamaModel, template: str) -> llama_chat_format.Jinja2ChatFormatter:
    """Called with messages=[{"role": …, "content": …}, …], it gives their text as `prompt`."""
    return llama_chat_format.Jinja2ChatFormatter(
        template=template,
        eos_token=model.token_get_text(model.token_eos()),
        bos_token=model.token_get_text(model.token_bos()),
    )


def _formatted(model: _internals.LlamaModel, template: str, messages: list[dict[str, str]]) -> str:
    return chat_formatter(model, template)(messages=messages).prompt
