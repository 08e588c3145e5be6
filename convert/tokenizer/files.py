"""The files of a checkpoint's tokenizer, read once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from yarn_gguf.errors import ConversionError

TOKENIZER_JSON, SENTENCEPIECE, TEKKEN = "tokenizer.json", "tokenizer.model", "tekken.json"
CHAT_TEMPLATE_JSON = "chat_template.json"
ROLES = ("bos", "eos", "unk", "pad")


def has_tokenizer(folder: Path) -> bool:
    """Return whether `folder` has a tokenizer that can be read."""
    return any((folder / name).is_file() for name in (TOKENIZER_JSON, SENTENCEPIECE))


@dataclass(frozen=True)
class AddedToken:
    """A token that was added to the tokens of the model.

    special: a user's text never gives it. normalized: it is looked for in the text after the normalizer,
    where spaces are written as SentencePiece's.
    """

    text: str
    special: bool
    normalized: bool


class TokenizerFiles:
    """tokenizer.json, tokenizer_config.json and others in `folder`; {} for a missing file.

    Raises ConversionError if `folder` has no tokenizer, or if a file is not JSON.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not has_tokenizer(self.folder):
            remedy = "download the checkpoint's tokenizer"
            if (self.folder / TEKKEN).is_file():
                remedy = (
                    f"make one of {TEKKEN} with transformers' convert_tekken_tokenizer (docs/tokenizers.md)"
                )
            raise ConversionError(
                f"{self.folder}: no {TOKENIZER_JSON} and no {SENTENCEPIECE}: {remedy}, or use --no-tokenizer "
                "for a file that takes token ids, not text"
            )

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        return self._read(TOKENIZER_JSON)

    @cached_property
    def config(self) -> dict[str, Any]:
        return self._read("tokenizer_config.json")

    @cached_property
    def chat_template_json(self) -> dict[str, Any]:
        return self._read(CHAT_TEMPLATE_JSON)

    @cached_property
    def added_tokens(self) -> dict[int, AddedToken]:
        """The added tokens by id.

        tokenizer.json overrides tokenizer_config.json, which overrides added_tokens.json.
        """
        added = {id_: AddedToken(text, False, True) for text, id_ in self._read("added_tokens.json").items()}
        listed = [(int(i), each) for i, each in self.config.get("added_tokens_decoder", {}).items()]
        listed += [(each["id"], each) for each in self.tokenizer.get("added_tokens", ())]
        return added | {id_: _added_token(each) for id_, each in listed}

    def steps(self, section: str) -> list[dict[str, Any]]:
        """Return the steps of tokenizer.json's section "normalizer" or "pre_tokenizer", in order."""
        part = self.tokenizer.get(section)
        if part is None:
            return []
        return part.get("normalizers") or part.get("pretokenizers") or [part]

    def text_of(self, role: str) -> str | None:
        """Return the token that tokenizer_config.json names for a role: bos, eos, unk or pad."""
        named = self.config.get(f"{role}_token")
        text = named.get("content") if isinstance(named, dict) else named
        return text if isinstance(text, str) else None

    @property
    def is_llama_by_transformers_5(self) -> bool:
        """Whether transformers 5 wrote tokenizer.json in the place of a Llama's SentencePiece model.

        It writes SentencePiece's space before a text as a Metaspace. That leaves the space out before another
        one, and after a special token if prepend_scheme is "first", which a second saving changes. The model
        was trained by SentencePiece. A tokenizer with tokens that belong within a text does not count: it may
        have been trained in either way.
        """
        steps = self.steps("pre_tokenizer")
        is_metaspace = [each["type"] for each in steps] == ["Metaspace"] and steps[0].get("split") is False
        named = {self.text_of(role) for role in ROLES}
        return (
            str(self.config.get("tokenizer_class")).startswith("LlamaTokenizer")
            and is_metaspace
            and steps[0].get("prepend_scheme") != "never"
            and not self.steps("normalizer")
            and all(added.text in named for added in self.added_tokens.values())
        )

    @property
    def has_sentencepiece(self) -> bool:
        return (self.folder / SENTENCEPIECE).is_file()

    @property
    def is_byte_level(self) -> bool:
        """Whether tokenizer.json is BPE over bytes (like GPT-2's), not over characters (SentencePiece)."""
        model = self.tokenizer.get("model", {})
        return model.get("type") == "BPE" and not model.get("byte_fallback")

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise ConversionError(f"{path}: not JSON ({error}): download it again") from error


def _added_token(values: dict[str, Any]) -> AddedToken:
    special = bool(values.get("special"))
    return AddedToken(values["content"], special, bool(values.get("normalized", not special)))
