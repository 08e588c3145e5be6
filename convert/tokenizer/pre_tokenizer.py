"""Find the pre-tokenizer of llama.cpp that splits a text as tokenizer.json says.

The content of the section "pre_tokenizer" decides, never a model's name. llama.cpp has several names for one
way of splitting, which differ in two flags: the name whose flags agree best is taken. check_vocabulary then
compares token ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarn_gguf.convert.tokenizer.files import TOKENIZER_JSON, TokenizerFiles
from yarn_gguf.errors import ConversionError

# The regular expressions by which tokenizers split a text. Several are applied one after the other.
_DIGIT = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LOWER_END = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_UPPER_END = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_SYMBOLS_OR_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_CJK_AND_HANGUL = "[一-龥ࠀ-一가-퟿]+"

# letters with upper and lower case, as DeepSeek's tokenizer.json lists them (an older Unicode)
_CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅ"
    "ὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇ"
    "Ꞌ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)


def _one_of(*alternatives: str) -> str:
    return "|".join(alternatives)


_CL100K = _one_of(_CONTRACTION, _WORD, r"\p{N}{1,3}", _SYMBOLS, _SPACES)
_QWEN2 = _one_of(_CONTRACTION, _WORD, _DIGIT, _SYMBOLS, _SPACES)
_O200K = _one_of(
    f"{_LOWER_END}{_CONTRACTION}?", f"{_UPPER_END}{_CONTRACTION}?", r"\p{N}{1,3}", _SYMBOLS_OR_SLASH, _SPACES
)
_TEKKEN = _one_of(_LOWER_END, _UPPER_END, _DIGIT, _SYMBOLS_OR_SLASH, _SPACES)
_DEEPSEEK_3 = _one_of(
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""",
    "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+",
    " ?[\\p{P}\\p{S}]+[\r\n]*",
    "\\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
)


@dataclass(frozen=True)
class PreTokenizer:
    """A pre-tokenizer of llama.cpp: its name, its regular expressions, and the flags of that name.

    ignore_merges: a piece that is in the vocabulary is a token, whatever the merges say. clean_spaces: text
    made from tokens has no space before punctuation (`clean_up_tokenization_spaces`).
    """

    name: str
    patterns: tuple[str, ...]
    ignore_merges: bool = False
    clean_spaces: bool = True


PRE_TOKENIZERS = (
    PreTokenizer("gpt-2", (_GPT2,)),
    PreTokenizer("trillion", (_GPT2,), clean_spaces=False),
    PreTokenizer("starcoder", (_DIGIT, _GPT2)),
    PreTokenizer("smollm", (_DIGIT, _GPT2), clean_spaces=False),
    PreTokenizer("llama-bpe", (_CL100K,), ignore_merges=True),
    PreTokenizer("dbrx", (_CL100K,)),
    PreTokenizer("qwen2", (_QWEN2,), clean_spaces=False),
    PreTokenizer("stablelm2", (_QWEN2,)),
    # not "gpt-4o": it splits words at combining marks, which changes gpt-oss's tokens of Hindi and Thai
    PreTokenizer("granite-embed-multi-97m", (_O200K,), ignore_merges=True, clean_spaces=False),
    PreTokenizer("tekken", (_TEKKEN,), ignore_merges=True, clean_spaces=False),
    PreTokenizer("deepseek-v3", (r"\p{N}{1,3}", _CJK, _DEEPSEEK_3), clean_spaces=False),
    PreTokenizer(
        "deepseek-llm",
        (
            "[\r\n]",
            rf"\s?[{_CASED}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            _CJK_AND_HANGUL,
            _DIGIT,
        ),
        clean_spaces=False,
    ),
    PreTokenizer(
        "deepseek-coder",
        ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_AND_HANGUL, _DIGIT),
        clean_spaces=False,
    ),
)


def pre_tokenizer_name(files: TokenizerFiles) -> str:
    """Return the value of tokenizer.ggml.pre for the byte-level BPE tokenizer in `files`.

    Raises ConversionError if llama.cpp does not have it, or if PRE_TOKENIZERS does not list it.
    """
    path = files.folder / TOKENIZER_JSON
    patterns = tuple(each for step in files.steps("pre_tokenizer") for each in _patterns(step, path))
    flags = (
        bool(files.tokenizer["model"].get("ignore_merges")),
        bool(files.config.get("clean_up_tokenization_spaces")),
    )
    known = [each for each in PRE_TOKENIZERS if each.patterns == patterns]
    if not known:
        names = ", ".join(each.name for each in PRE_TOKENIZERS)
        raise ConversionError(
            f"{path}: pre_tokenizer splits by {patterns}, unlike {names}: if llama.cpp has it under "
            "another name, add that to PRE_TOKENIZERS in yarn_gguf/convert/tokenizer/pre_tokenizer.py"
        )
    return max(known, key=lambda each: _agreement(each, *flags)).name


# ----------------------------------------------------------------------------------------------


def _agreement(known: PreTokenizer, ignore_merges: bool, clean_spaces: bool) -> tuple[bool, bool]:
    """Rank how well the flags agree. ignore_merges comes first, because it changes tokens."""
    return known.ignore_merges == ignore_merges, known.clean_spaces == clean_spaces


def _patterns(step: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Return the regular expressions of a step of the section "pre_tokenizer"."""
    if step["type"] == "Split" and _isolates(step):
        return (step["pattern"]["Regex"],)
    if step["type"] == "Digits" and step.get("individual_digits"):
        return (_DIGIT,)
    if step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
        return (_GPT2,) if step.get("use_regex", True) else ()
    raise ConversionError(f"{path}: pre_tokenizer has a step that llama.cpp does not have: {step}")


def _isolates(step: dict[str, Any]) -> bool:
    """Return whether every match of the step is a piece.

    "Removed" with `invert` drops all that does not match. It equals "Isolated" if the matches cover the text.
    """
    how = (step.get("behavior"), bool(step.get("invert")))
    return "Regex" in step["pattern"] and how in (("Isolated", False), ("Removed", True))
