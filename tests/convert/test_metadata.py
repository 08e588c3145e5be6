"""The general.* keys that come from the model card and from generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from yarn_gguf.convert.metadata import add_metadata

CARD = """\
version: {q}1.10{q}
model_name: {q}2024-05-01{q}
license: {q}no{q}
license_name: {q}1e3{q}
base_model: [{q}meta-llama/Llama-3.1-8B{q}, {q}12{q}]
datasets:
- {q}2024{q}
tags: [a, {q}7{q}, {q}true{q}, {q}0x1F{q}, {q}12:30:45{q}]
language: [{q}no{q}, en]
author: ~
"""
SAMPLING = {
    "sequence": "k;p",
    "top_k": 40,
    "top_p": 0.5,
    "min_p": 0.25,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.5,
    "temperature": 0.75,
    "penalty_last_n": 64,
    "penalty_repeat": 1.5,
    "mirostat": 2,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.125,
    "do_sample": True,
}


def written(folder: Path, card: str) -> dict[str, Any]:
    """Return the keys for a model card with this head."""
    (folder / "README.md").write_text(f"---\n{card}---\n# A model\n")
    writer = gguf.GGUFWriter(None, "llama")
    add_metadata(writer, folder)
    return {key: entry.value for key, entry in writer.kv_data[0].items()}


def upstream(folder: Path) -> dict[str, Any]:
    """Return the keys that upstream's own reader of the card makes."""
    metadata = gguf.Metadata.load(model_path=folder)
    metadata.size_label = metadata.size_label or gguf.size_label(0, 0, 0, 0)
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    metadata.set_gguf_meta_model(writer)
    return {key: entry.value for key, entry in writer.kv_data[0].items()}


def test_numbers_dates_and_no_are_the_text_that_the_model_card_has(tmp_path: Path, caplog) -> None:
    """Upstream reads the same card with every value in quotes."""
    (tmp_path / "generation_config.json").write_text(json.dumps(SAMPLING))
    keys = written(tmp_path, CARD.format(q=""))
    assert keys["general.version"] == "1.10" and keys["general.tags"][1:3] == ["7", "true"]
    assert len([key for key in keys if key.startswith("general.sampling.")]) == len(SAMPLING) - 1
    assert written(tmp_path, CARD.format(q='"')) == keys == upstream(tmp_path)
    assert not caplog.records


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("version: [1, 2]", "general.version"),
        ("license: {a: b}", "general.license"),
        ("tags: [a, {b: c}]", "general.tags"),
        ("base_model: [{name: [x]}]", "general.base_model.0.name"),
    ],
)
def test_a_value_of_the_card_that_has_no_place_in_its_key_is_left_out_with_a_note(
    line: str, key: str, tmp_path: Path, caplog
) -> None:
    keys = written(tmp_path, f"{line}\nauthor: me\n")
    assert key not in keys and keys["general.author"] == "me"
    assert f"{tmp_path / 'README.md'}: {key} would be" in caplog.text and "left out" in caplog.text


@pytest.mark.parametrize(
    "card", ["", "---\n", "---\nversion: 1.5\n", "# no head\n---\n", "--- \nversion: 2\n"]
)
def test_a_card_without_a_whole_head_is_read_as_upstream_reads_it(card: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    writer = gguf.GGUFWriter(None, "llama")
    add_metadata(writer, tmp_path)
    expected = {
        key: str(value) if key == "general.version" else value for key, value in upstream(tmp_path).items()
    }
    assert {key: entry.value for key, entry in writer.kv_data[0].items()} == expected
