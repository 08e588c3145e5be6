"""Check that a GGUF file's vocabulary gives the token ids of the checkpoint's tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

from yarn_gguf.convert.tokenizer.files import TOKENIZER_JSON, TokenizerFiles
from yarn_gguf.convert.tokenizer.probe import PROBE
from yarn_gguf.convert.tokenizer.vocabulary import SPACE, load_sentencepiece
from yarn_gguf.errors import ConversionError

if TYPE_CHECKING:
    from llama_cpp._internals import LlamaModel

_log = logging.getLogger(__name__)
Encode = Callable[[str], list[int]]
_AROUND = 20  # bytes of the text that a message shows before and after a difference


def check_vocabulary(output: str | Path, files: TokenizerFiles) -> None:
    """Raise ConversionError that shows the first difference, if there is one. Raises as that does."""
    if difference := vocabulary_difference(output, files):
        remedy = "the file would misread such text; --no-tokenizer-check keeps the file anyway"
        raise ConversionError(f"{files.folder}: {difference}: {remedy}")


def vocabulary_difference(output: str | Path, files: TokenizerFiles) -> str | None:
    """Compare the token ids of the GGUF file `output` with those of the tokenizer in `files`.

    The texts: a probe of many scripts, code, whitespace, numbers and emoji, and each added token, alone and
    within a text. Loads the vocabulary without the weights. Returns the first difference, else None. Raises
    ModelLoadError if the native library refuses the file.
    """
    from yarn_gguf.run.prompt import load_vocabulary  # loads the native library

    has_json = bool(files.tokenizer)
    original = _tokenizer_json(files) if has_json else load_sentencepiece(files).encode
    with closing(load_vocabulary(output)) as model:
        for text in _probes(files, model.n_vocab()):
            # tokenizer.json finds control tokens in a text, sentencepiece does not
            got, expected = model.tokenize(text.encode(), add_bos=False, special=has_json), original(text)
            if got != expected:
                return _difference(model, text, got, expected)
    return None


# ----------------------------------------------------------------------------------------------


def _tokenizer_json(files: TokenizerFiles) -> Encode:
    """Return the function from a text to its token ids by tokenizer.json.

    Truncation and padding, which a training may leave in it, are set anew with each call of transformers.
    """
    from tokenizers import Tokenizer, normalizers  # the original implementation; slow to import

    tokenizer = Tokenizer.from_file(str(files.folder / TOKENIZER_JSON))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if files.is_llama_by_transformers_5:
        _log.warning(
            f"{files.folder / TOKENIZER_JSON}: transformers 5 wrote it, and reads a space at the beginning "
            "of a text, and text after a special token, in another way than SentencePiece, by which Llama is "
            "trained: the file reads as SentencePiece does"
        )
        prepend, replace = normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)
        tokenizer.normalizer = normalizers.Sequence([prepend, replace])
        tokenizer.pre_tokenizer = None
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _probes(files: TokenizerFiles, size: int) -> Iterator[str]:
    """Yield the texts to compare.

    llama.cpp does not compose characters (NFC). If the original does, the texts are composed beforehand.
    """
    composes = any(step["type"] == "NFC" for step in files.steps("normalizer"))
    yield from (normalize("NFC", text) if composes else text for text in PROBE)
    if files.tokenizer:
        for added in (added for i, added in files.added_tokens.items() if i < size):
            text = added.text if added.special else added.text.replace(SPACE, " ")
            yield text
            yield f"a{text}b {text} c{text}"


def _difference(model: LlamaModel, text: str, got: list[int], expected: list[int]) -> str:
    """Describe the first difference: the token by both tokenizers, and its place in the text."""
    pairs = enumerate(zip(got, expected, strict=False))
    same = next((i for i, (one, other) in pairs if one != other), min(len(got), len(expected)))
    data, at = text.encode(), len(model.detokenize(got[:same], special=True))
    around = data[max(0, at - _AROUND) : at + _AROUND].decode(errors="replace")
    ours, theirs = (_token(model, ids[same]) if same < len(ids) else "nothing" for ids in (got, expected))
    return f"token {same} of {text!r} is {ours}, but {theirs} by the checkpoint's tokenizer, near {around!r}"


def _token(model: LlamaModel, id_: int) -> str:
    """Return a token's text and id. The library ends the process if it is asked for an id that it lacks."""
    return f"{model.token_get_text(id_)!r} ({id_})" if id_ < model.n_vocab() else f"id {id_}"
