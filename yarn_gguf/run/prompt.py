"""From a prompt's text to its tokens, without loading the model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from yarn_gguf.gguf.header import read_header
from yarn_gguf.native.log import native_reasons
from yarn_gguf.run.handles import Vocabulary, llama_cpp

_BREAK = b"\x01"  # no token goes across it
_SPECIAL = (
    llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
    | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
    | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
)  # found in a text before it is tokenized


def text_tokens(model_path: str | Path, text: str) -> list[int]:
    """Return the tokens of `text`, after the BOS token if the model has one.

    Raises GGUFError, ModelLoadError.
    """
    with closing(load_vocabulary(model_path)) as model:
        return model.tokenize(text.encode(), add_bos=model.add_bos_token(), special=False)


def following_tokens(
    model: Vocabulary, text: str, before: Sequence[int], *, special: bool = True
) -> list[int]:
    """Return the tokens of `text` as they come after the tokens `before`.

    SentencePiece's tokenizers put a space in front of a text's beginning, and of the text after a special
    token. `text` alone would have one in any case.
    """
    if not _has_pieces(model) or _is_fresh(model, before):
        return model.tokenize(text.encode(), add_bos=False, special=special)
    head = model.tokenize(_BREAK, add_bos=False, special=special)
    return model.tokenize(_BREAK + text.encode(), add_bos=False, special=special)[len(head) :]


def spaces_put_after(model: Vocabulary, before: Sequence[int]) -> int:
    """Return the spaces that a tokenizer puts in front of the text after `before`: 1 or 0.

    The first token has them, and its text has not.
    """
    if not _has_pieces(model) or not _is_fresh(model, before):
        return 0
    return len(model.tokenize(_BREAK, add_bos=False, special=True)) - 1


def load_vocabulary(model_path: str | Path) -> Vocabulary:
    """Load the model in the file without its weights. Close it after use.

    Raises GGUFError, ModelLoadError.
    """
    read_header(model_path)  # refuses a damaged file with a clear message
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    with native_reasons(model_path):
        return Vocabulary(path_model=str(model_path), params=params, verbose=False)


# ----------------------------------------------------------------------------------------------


def _has_pieces(model: Vocabulary) -> bool:
    return model.vocab_type() == llama_cpp.LLAMA_VOCAB_TYPE_SPM


def _is_fresh(model: Vocabulary, before: Sequence[int]) -> bool:
    return not before or bool(model.token_get_attr(before[-1]) & _SPECIAL)
