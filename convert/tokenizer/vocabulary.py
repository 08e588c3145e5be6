"""Convert a checkpoint's tokenizer to the vocabulary of a GGUF file."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf import GGUFWriter, SpecialVocab, TokenType

from yarn_gguf.convert.tokenizer.files import SENTENCEPIECE, TOKENIZER_JSON, AddedToken, TokenizerFiles
from yarn_gguf.convert.tokenizer.pre_tokenizer import pre_tokenizer_name
from yarn_gguf.convert.tokenizer.templates import chat_templates
from yarn_gguf.errors import ConversionError
from yarn_gguf.rope.hf_config import Config

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_log = logging.getLogger(__name__)
# it warns of every Llama's template for pairs of texts
logging.getLogger("gguf.vocab").setLevel(logging.ERROR)

SPACE = "\u2581"  # SentencePiece's
_PADDING_SCORE, _ADDED_SCORE = -10000.0, -1000.0  # upstream's values; no merge makes such a token
_SHOWN = 5  # tokens that a warning names
# brackets of control tokens, which some checkpoints do not mark as special (Qwen's <|fim_prefix|>)
_BRACKETS = (("<|", "|>"), ("<｜", "｜>"))


@dataclass
class Token:
    """A token of the vocabulary; by default, a row of the embedding that no token uses."""

    text: str
    type: TokenType = TokenType.UNUSED
    score: float = _PADDING_SCORE


def add_vocabulary(writer: GGUFWriter, files: TokenizerFiles, config: Config) -> None:
    """Write the tokenizer in `files`: tokens, special ids, flags and chat template.

    config: config.json. The vocabulary is padded to its vocab_size, the number of rows of the embedding.
    Raises ConversionError for a tokenizer that is damaged, does not fit, or does not exist in llama.cpp.
    """
    tokens = [Token(f"[PAD{i}]") for i in range(config.whole("vocab_size"))]
    if files.is_byte_level:
        _add_byte_level(writer, files, tokens)
    else:
        _add_sentencepiece(writer, files, tokens)
    special = SpecialVocab(files.folder, n_vocab=len(tokens))
    _check_beyond(files, config, len(tokens))
    special.chat_template = None
    special.add_to_gguf(writer, quiet=True)
    if templates := chat_templates(files):
        writer.add_chat_template([{"name": name, "template": text} for name, text in templates.items()])


# ----------------------------------------------------------------------------------------------


def _add_byte_level(writer: GGUFWriter, files: TokenizerFiles, tokens: list[Token]) -> None:
    model = files.tokenizer["model"]
    _place(tokens, files, ((i, Token(text, TokenType.NORMAL)) for text, i in model["vocab"].items()))
    _place_added(tokens, files)
    _check_distinct(tokens, files)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(files))
    writer.add_token_list([token.text for token in tokens])
    writer.add_token_types([token.type for token in tokens])
    if merges := [_merge(each) for each in model["merges"]]:
        writer.add_token_merges(merges)


def _merge(pair: str | list[str]) -> str:
    """Return the two pieces with a space between them. Spaces within a piece become byte-level BPE's."""
    return pair if isinstance(pair, str) else " ".join([piece.replace(" ", "\u0120") for piece in pair])


def _add_sentencepiece(writer: GGUFWriter, files: TokenizerFiles, tokens: list[Token]) -> None:
    pieces = _model_pieces(files) if files.has_sentencepiece else _json_pieces(files)
    _place(tokens, files, pieces)
    _place_added(tokens, files)
    _check_distinct(tokens, files)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token.text for token in tokens])
    writer.add_token_scores([token.score for token in tokens])
    writer.add_token_types([token.type for token in tokens])
    writer.add_add_space_prefix(_adds_space_prefix(files))
    ids = {token.text: i for i, token in enumerate(tokens)}
    if f"{SPACE}<EOT>" in ids:  # Code Llama's end of an infill; llama.cpp does not find it by itself
        writer.add_eot_token_id(ids[f"{SPACE}<EOT>"])


def _place(tokens: list[Token], files: TokenizerFiles, found: Iterable[tuple[int, Token]]) -> None:
    """Put the tokens of the model at their ids. Raise ConversionError for an id beyond the embedding."""
    for i, token in found:
        if i >= len(tokens):
            raise ConversionError(
                f"{files.folder}: the tokenizer has a token {i} ({token.text!r}), and vocab_size in "
                f"config.json is {len(tokens)}: do tokenizer and weights belong together?"
            )
        tokens[i] = token


def _place_added(tokens: list[Token], files: TokenizerFiles) -> None:
    """Put the added tokens at their ids.

    Added tokens beyond the embedding are left out: the model does not know them. See _check_beyond.
    """
    for i, added in files.added_tokens.items():
        if i >= len(tokens):
            continue
        if added.special or _looks_special(added):
            tokens[i] = Token(added.text, TokenType.CONTROL, _ADDED_SCORE)
        elif added.normalized or SPACE not in added.text or tokens[i].text != added.text:
            # llama.cpp looks for it in the text before spaces are replaced
            tokens[i] = Token(added.text.replace(SPACE, " "), TokenType.USER_DEFINED, _ADDED_SCORE)
        # else: a text itself has no such space, so the token stays a piece that merges make (Gemma)


def _check_beyond(files: TokenizerFiles, config: Config, size: int) -> None:
    """Warn of added tokens that have no row in the embedding, such as Gemma 3 1B's image token.

    Raises ConversionError if one of them begins or ends every text: llama.cpp would take another token.
    """
    beyond = {i: added.text for i, added in files.added_tokens.items() if i >= size}
    for role in ("bos", "eos"):
        named, own = files.text_of(role), config.values.get(f"{role}_token_id")
        found = [i for i, text in beyond.items() if text == named]
        found += [own] if named is None and isinstance(own, int) and own >= size else []
        if found:
            raise ConversionError(
                f"{files.folder}: {role}_token {named or ''!r} is token {found[0]}, and the embedding has "
                f"{size} rows (vocab_size): enlarge it by transformers' resize_token_embeddings, or name a "
                f"token in tokenizer_config.json that the model knows"
            )
    if beyond:
        shown = ", ".join(f"{text!r} ({i})" for i, text in sorted(beyond.items())[:_SHOWN])
        more = f" and {len(beyond) - _SHOWN} more" if len(beyond) > _SHOWN else ""
        _log.warning(
            f"{files.folder}: the embedding has {size} rows (vocab_size), and none for the added tokens "
            f"{shown}{more}: they are left out, and read as plain text"
        )


def _looks_special(token: AddedToken) -> bool:
    return any(token.text.startswith(start) and token.text.endswith(end) for start, end in _BRACKETS)


def _check_distinct(tokens: list[Token], files: TokenizerFiles) -> None:
    """Raise ConversionError if two tokens have one text up to the first zero byte.

    llama.cpp ends the process in that case.
    """
    seen: dict[str, int] = {}
    for i, token in enumerate(tokens):
        text = token.text.split("\0")[0]
        if text and (first := seen.setdefault(text, i)) != i:
            raise ConversionError(
                f"{files.folder}: tokens {first} and {i} are both {text!r} to llama.cpp, which needs "
                "different texts: is the tokenizer damaged?"
            )


def _model_pieces(files: TokenizerFiles) -> Iterable[tuple[int, Token]]:
    """Yield the ids and tokens of tokenizer.model."""
    model = load_sentencepiece(files)
    for i in range(model.vocab_size()):
        types = {
            TokenType.UNKNOWN: model.IsUnknown(i),
            TokenType.CONTROL: model.IsControl(i),
            TokenType.UNUSED: model.IsUnused(i),
            TokenType.BYTE: model.IsByte(i),
        }
        type_ = next((each for each, holds in types.items() if holds), TokenType.NORMAL)
        yield i, Token(model.IdToPiece(i), type_, model.GetScore(i))


def _json_pieces(files: TokenizerFiles) -> Iterable[tuple[int, Token]]:
    """Yield the ids and tokens of SentencePiece's BPE in tokenizer.json. Earlier merges get higher scores."""
    model = files.tokenizer.get("model", {})
    if model.get("type") != "BPE":
        path, found = files.folder / TOKENIZER_JSON, model.get("type")
        raise ConversionError(f"{path}: model.type is {found!r}: only BPE can be converted")
    scores: dict[str, float] = {}
    for rank, merge in enumerate(model["merges"]):
        piece = "".join(merge if isinstance(merge, list) else merge.split(" "))
        scores.setdefault(piece, -float(rank))
    for text, i in model["vocab"].items():
        yield i, Token(text, _piece_type(text, model), scores.get(text, -float(len(model["merges"]))))


def _piece_type(text: str, model: dict[str, Any]) -> TokenType:
    if text == model.get("unk_token"):
        return TokenType.UNKNOWN
    is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    return TokenType.BYTE if is_byte else TokenType.NORMAL


def _adds_space_prefix(files: TokenizerFiles) -> bool:
    """Return whether the tokenizer puts a space before a text."""
    if not files.tokenizer:
        return bool(load_sentencepiece(files).encode("a", out_type=str)[0].startswith(SPACE))
    return any(
        each["type"] == "Prepend" or (each["type"] == "Metaspace" and each.get("prepend_scheme") != "never")
        for each in files.steps("normalizer") + files.steps("pre_tokenizer")
    )


def load_sentencepiece(files: TokenizerFiles) -> SentencePieceProcessor:
    """Return the tokenizer in tokenizer.model. Raises ConversionError for a damaged file."""
    from sentencepiece import SentencePieceProcessor

    path = files.folder / SENTENCEPIECE
    try:
        return SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ConversionError(f"{path}: not a SentencePiece model ({error}): download it again") from error
