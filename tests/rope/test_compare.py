"""A checkpoint and a file that was converted from it, by us or by upstream, show no difference."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from hf_checkpoints import convert_weights
from libraries import HELPERS
from published import PUBLISHED
from upstream_tree import unpack_converter

from yarn_gguf.rope.compare import rope_differences, table_at
from yarn_gguf.rope.hf_rope import read_hf_rope
from yarn_gguf.rope.read import read_model

BY_UPSTREAM = ("Llama-3.1-8B",)  # a tensor of rope factors
BY_UPSTREAM_SLOW = ("Qwen2.5-7B-Instruct with YaRN", "DeepSeek-V3")


def save_checkpoint(folder: Path, name: str) -> Path:
    """Save random weights beside config.json as published, which also names the class."""
    (folder / "config.json").write_text(json.dumps(PUBLISHED[name].config))
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    published = PUBLISHED[name].config | {"architectures": [type(model).__name__]}
    (folder / "config.json").write_text(json.dumps(published))
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return unpack_converter(tmp_path_factory.mktemp("upstream"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_converted_file_rotates_as_its_published_checkpoint(name: str, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, name)
    (path,) = convert_weights(folder, tmp_path / "model.gguf", type="f32")
    assert rope_differences(read_hf_rope(folder), read_model(path)) == []


@pytest.mark.parametrize(
    "name", [*BY_UPSTREAM, *(pytest.param(each, marks=pytest.mark.slow) for each in BY_UPSTREAM_SLOW)]
)
def test_upstreams_file_rotates_as_its_published_checkpoint(name: str, tmp_path: Path, tree: Path) -> None:
    folder, path = save_checkpoint(tmp_path, name), tmp_path / "model.gguf"
    command = [sys.executable, HELPERS / "upstream_converter.py", tree, folder, path, "f32"]
    done = subprocess.run([*command, "--no-tokenizer", "--published-config"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert rope_differences(read_hf_rope(folder), read_model(path)) == []


def test_the_numbers_of_a_checkpoint_are_those_of_transformers(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, "Qwen2.5-7B-Instruct with YaRN")
    rotary = transformers.AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb
    inv_freq, attention_factor = table_at(read_hf_rope(folder), 1000)
    assert inv_freq.tolist() == pytest.approx(rotary.inv_freq.tolist(), rel=1e-6)
    assert attention_factor == pytest.approx(rotary.attention_scaling)
