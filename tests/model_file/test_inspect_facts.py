"""The facts that inspect shows beside the rope scaling, of files and of checkpoints."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import transformers
from hf_checkpoints import convert_weights, save_checkpoint, save_in_shards
from tiny_gguf import TOKENS, write_tiny

from yarn_gguf.cli import main
from yarn_gguf.errors import GGUFError
from yarn_gguf.gguf.edit import change_keys
from yarn_gguf.gguf.header import ValueType, key_value, read_header
from yarn_gguf.model_file.extend import extend
from yarn_gguf.model_file.inspect import inspect
from yarn_gguf.rope.scaling import RopeScaling


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_checkpoint(
        tmp_path_factory.mktemp("hf") / "small-llama", dtype="bfloat16", num_hidden_layers=2
    )


def shown(capsys, path: Path, *options: str) -> str:
    """Return what the command prints."""
    assert main(["inspect", str(path), *options]) == 0
    return capsys.readouterr().out


def weights_of(folder: Path) -> int:
    """Return the number of parameters that transformers counts."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


# ---- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["f32", "q8_0", "q4_k_m", "iq4_xs"])
def test_type_and_bits_of_a_file_are_those_of_the_gguf_package(
    folder: Path, tmp_path: Path, type_: str
) -> None:
    (path,) = convert_weights(folder, tmp_path / "a.gguf", type=type_)
    facts, tensors = inspect(path).facts, gguf.GGUFReader(path).tensors
    weights = sum(int(each.n_elements) for each in tensors)
    assert (facts.type, facts.name) == (type_.upper(), "Small Llama")
    assert facts.parameters == weights == weights_of(folder)
    assert facts.bits_per_weight == pytest.approx(
        8 * sum(int(each.n_bytes) for each in tensors) / weights, rel=0.01
    )
    assert facts.bytes == path.stat().st_size


def test_a_file_without_a_stated_type_has_that_of_most_weights(tmp_path: Path) -> None:
    halves = {"c.weight": np.zeros((64, 256), np.float16)}
    assert inspect(write_tiny(tmp_path / "a.gguf", tensors=halves)).facts.type == "F16"
    assert inspect(write_tiny(tmp_path / "b.gguf")).facts.type == "F32"


def test_all_parts_of_a_split_model_are_counted_and_a_lost_one_is_named(
    folder: Path, tmp_path: Path, capsys
) -> None:
    parts = convert_weights(folder, tmp_path / "a.gguf", type="q8_0", split_max_size=400_000)
    facts = inspect(parts[0]).facts
    assert (facts.parameters, facts.files) == (weights_of(folder), len(parts))
    assert facts.bytes == sum(part.stat().st_size for part in parts)
    parts[1].unlink()
    assert inspect(parts[0]).facts.missing == (parts[1].name,)
    assert f"1 of {len(parts)} files: {parts[1].name}" in shown(capsys, parts[0])


def test_tokenizer_template_and_license_of_a_file_are_shown(tmp_path: Path, capsys) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (("context_length", 64), ("embedding_length", 64), ("attention.head_count", 4)):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_license("apache-2.0")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(TOKENS)
    writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    facts = inspect(path).facts
    assert (facts.tokenizer, facts.vocabulary) == ("gpt2, llama-bpe", len(TOKENS))
    assert (facts.has_chat_template, facts.license, facts.type) == (True, "apache-2.0", None)
    out = shown(capsys, path)
    assert f"gpt2, llama-bpe, {len(TOKENS)} tokens; a chat template" in out
    assert "apache-2.0" in out


def test_a_name_cannot_steer_the_terminal_nor_break_the_line(tmp_path: Path, capsys) -> None:
    path = write_tiny(tmp_path / "a.gguf")
    name = "evil\x1b]0;pwned\x07\nname"
    change_keys(read_header(path), [key_value("general.name", ValueType.STRING, name)], ["general.name"])
    assert "evil]0;pwned name, llama" in shown(capsys, path)


@pytest.mark.parametrize(
    ("arch", "keys", "lines"),
    [
        ("llama", {}, ["12 with full attention: scaled"]),
        (
            "gemma3",
            {"attention__sliding_window": 512},
            [
                "2 with full attention: scaled",
                "10 with a sliding window of 512 tokens, base 10000: not scaled",
            ],
        ),
        (
            "gemma2",
            {},
            ["6 with full attention: scaled", "6 with a sliding window of 4,096 tokens, base 100000: scaled"],
        ),
        ("smollm3", {}, ["9 with full attention: scaled", "3 with full attention, no rotary embedding"]),
        ("exaone4", {}, ["which kinds there are is not known for exaone4"]),
    ],
)
def test_the_layers_that_a_scaling_reaches_are_shown(
    tmp_path: Path, arch: str, keys: dict[str, Any], lines: list[str], capsys
) -> None:
    path = write_tiny(tmp_path / "a.gguf", arch, block_count=12, **keys)
    unscaled = shown(capsys, path)
    assert ": scaled" not in unscaled and ": not scaled" not in unscaled
    extend(path, RopeScaling("yarn", 4.0))
    out = shown(capsys, path).splitlines()
    start = next(number for number, line in enumerate(out) if line.startswith("  layers"))
    assert [line[2:].removeprefix("layers").strip() for line in out[start : start + len(lines)]] == lines
    kinds = json.loads(shown(capsys, path, "--json"))["layers"]
    assert len(kinds) == (0 if arch == "exaone4" else len(lines))


def test_every_line_about_a_file_fits_80_columns(tmp_path: Path, capsys, monkeypatch) -> None:
    """The path alone may be longer. Lists of numbers are given by their length."""
    monkeypatch.chdir(tmp_path)
    lists = {"short_factor": tuple(map(float, range(1, 33))), "long_factor": tuple(map(float, range(2, 34)))}
    path = write_tiny(Path("a.gguf"), block_count=12)
    extend(path, RopeScaling("longrope", 4.0, 2048, **lists))
    out = shown(capsys, path)
    assert "short_factor of 32 numbers" in out
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        patch.setenv("COLUMNS", "80")
        terminal = re.sub(r"\x1b\[[\d;]*m", "", shown(capsys, path))
    assert max(map(len, terminal.splitlines())) <= 80


# ---- checkpoints -----------------------------------------------------------------------------


def test_a_checkpoint_is_shown_with_the_meaning_of_its_scaling(tmp_path: Path, capsys) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    folder = save_checkpoint(tmp_path / "hf", rope_parameters=rope)
    report = inspect(folder)
    rotary = transformers.AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb
    waves = 2 * np.pi / rotary.inv_freq.double().numpy()
    assert [each.scaled_wavelength for each in report.dimensions] == pytest.approx(waves.tolist(), rel=1e-6)
    assert report.temperature == pytest.approx(rotary.attention_scaling)
    assert (report.original_context, report.usable_context, report.context_length) == (64, 256, 256)
    out = shown(capsys, folder)
    assert f"{folder}: a checkpoint" in out
    assert 'rope_parameters {"factor": 4.0, "original_max_position_embeddings": 64,' in out
    assert "yarn, factor 4, original_max_position_embeddings 64" in out
    assert "8 with full attention: scaled" in out


def test_parameters_and_dtype_of_a_checkpoint_are_those_that_transformers_loads(folder: Path) -> None:
    facts = inspect(folder).facts
    assert (facts.type, facts.bits_per_weight) == ("BF16", 16)
    assert facts.parameters == weights_of(folder)
    assert inspect(folder / "config.json").facts == facts


def test_shards_are_added_up_and_a_lost_one_is_named(folder: Path, tmp_path: Path, capsys) -> None:
    copy = shutil.copytree(folder, tmp_path / "hf")
    index = save_in_shards(copy)
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    facts = inspect(copy).facts
    assert (facts.parameters, facts.files, facts.missing) == (weights_of(folder), len(names), ())
    (copy / names[0]).unlink()
    assert f"1 of {len(names)} files: {names[0]}" in shown(capsys, copy)


def test_a_model_card_and_a_tokenizer_are_found(folder: Path, tmp_path: Path, capsys) -> None:
    copy = shutil.copytree(folder, tmp_path / "hf")
    (copy / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n# Model\n")
    (copy / "tokenizer.json").write_text("{}")
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    out = shown(capsys, copy)
    assert "tokenizer.json, 320 tokens; a chat template" in out
    assert "license              mit" in out


def test_damaged_weights_are_an_error_that_names_the_file(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "hf")
    (copy / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(GGUFError, match=r"model\.safetensors: no sound safetensors file"):
        inspect(copy)


def test_a_checkpoint_with_windows_has_its_kinds_of_layers(tmp_path: Path, capsys) -> None:
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}
    folder = save_checkpoint(
        tmp_path,
        "gemma3_text",
        rope_parameters={"full_attention": full, "sliding_attention": plain},
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
        num_hidden_layers=6,
        sliding_window=64,
        query_pre_attn_scalar=32,
    )
    out = shown(capsys, folder)
    assert "1 with full attention: scaled" in out
    assert "5 with a sliding window of 64 tokens, base 10000: not scaled" in out
