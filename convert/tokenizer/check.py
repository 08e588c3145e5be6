"""The proof that a GGUF file's vocabulary is the checkpoint's tokenizer: both give the same token ids."""

from __future__ import annotations

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

Encode = Callable[[str], list[int]]


def check_vocabulary(output: str | Path, files: TokenizerFiles) -> None:
    """Compare the token ids of the GGUF file `output` with those of the tokenizer in `files`.

    On a probe text of many scripts, code, whitespace, numbers and emoji, and on each added token alone and in
    a text. Loads the vocabulary alone, not the weights. Raises ConversionError that shows the first
    difference, and ModelLoadError if the native library refuses the file.
    """
    from yarn_gguf.run.prompt import load_vocabulary  # loads the native library

    has_json = bool(files.tokenizer)
    original = _tokenizer_json(files) if has_json else load_sentencepiece(files.sentencepiece).encode
    with closing(load_vocabulary(output)) as model:
        for text in _probes(files, model.n_vocab()):
            # sentencepiece finds no control tokens in a text, tokenizer.json does
            got, expected = model.tokenize(text.encode(), add_bos=False, special=has_json), original(text)
            if got != expected:
                raise ConversionError(f"{files.folder}: {_difference(model, text, got, expected)}")


# ----------------------------------------------------------------------------------------------


def _tokenizer_json(files: TokenizerFiles) -> Encode:
    from tokenizers import Tokenizer  # the original implementation, and slow to import

    tokenizer = Tokenizer.from_file(str(files.folder / TOKENIZER_JSON))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _probes(files: TokenizerFiles, size: int) -> Iterator[str]:
    """The texts to compare. llama.cpp composes no characters: where the original does, they come composed."""
    composes = any(step["type"] == "NFC" for step in files.steps("normalizer"))
    yield from (normalize("NFC", text) if composes else text for text in PROBE)
    if files.tokenizer:
        for added in (added for i, added in files.added_tokens.items() if i < size):
            text = added.text if added.special else added.text.replace(SPACE, " ")
            yield text
            yield f"a{text}b {text} c{text}"


def _difference(model: LlamaModel, text: str, got: list[int], expected: list[int]) -> str:
    """What differs first, where, and all of both."""
    pairs = enumerate(zip(got, expected, strict=False))
    same = next((i for i, (one, other) in pairs if one != other), min(len(got), len(expected)))
    data, at = text.encode(), len(model.detokenize(got[:same], special=True))
    around = data[max(0, at - 20) : at + 20].decode(errors="replace")
    ours, theirs = (
        f"{model.token_get_text(ids[same])!r} ({ids[same]})" if same < len(ids) else "nothing"
        for ids in (got, expected)
    )
    return (
        f"token {same} of {text!r} is {ours}, and {theirs} by the checkpoint's tokenizer, near {around!r}: "
        f"{got} and {expected}: the file would misread such text; --no-tokenizer-check keeps it all the same"
    )
