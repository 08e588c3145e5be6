"""Converted files compared with the files of upstream's two steps, its converter and then its quantizer.

The tensors are the same, byte for byte. The keys are the same, except for a few.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import transformers
from conformance import CONTEXT, ROWS, make_model
from hf_checkpoints import save_smollm2
from libraries import HELPERS, UNPATCHED, run_python
from tiny_gguf import contents
from upstream_tree import unpack_converter

from yarn_gguf import RopeScaling
from yarn_gguf.convert import convert
from yarn_gguf.rope.read import read_model

TYPES = ("f16", "bf16", "q8_0", "q4_0", "q6_k", "q4_k_m")
# rows of 256, the block of the K types
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "num_attention_heads": 8,
}
# our keys that upstream's converter leaves out: the library has defaults for them, or derives them
EXPLICIT_IN_OURS = (
    *("vocab_size", "rope.dimension_count", "rope.freq_base"),
    *("attention.key_length", "attention.value_length", "attention.sliding_window_pattern"),
    *("expert_gating_func", "expert_weights_norm"),
    "file_type",  # GPT-NeoX
)
# upstream's keys without effect: a head's size that the library derives, a window of no tokens, and a
# default of transformers' class in a checkpoint without scaling
REDUNDANT_IN_UPSTREAMS = {
    "starcoder2.attention.key_length": 32,
    "starcoder2.attention.value_length": 32,
    "phi3.attention.sliding_window": 0,
    "phi3.rope.scaling.original_context_length": CONTEXT,
}
GPT_NEOX = "gpt-neox, 1/2 rotary"
QUICK = ("llama", "deepseek-v3", "gpt-oss")
SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name, row in ROWS.items()
    if name not in QUICK and not row.trained  # those have the checkpoint of another row
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_converter(tmp_path_factory.mktemp("upstream"))


def two_steps(
    tree: Path, checkpoint: Path, folder: Path, first: str, *options: str
) -> Iterator[tuple[str, Path]]:
    """Yield each type and upstream's file of that type. first: the type between the two steps."""
    middle = folder / f"{first}.gguf"
    command = [sys.executable, HELPERS / "upstream_converter.py", tree, checkpoint, middle, first]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    yield first, middle
    script, others = str(HELPERS / "upstream_quantizer.py"), [each for each in TYPES if each != first]
    done = run_python(UNPATCHED, script, str(middle), str(folder), *others)
    assert done.returncode == 0, done.stderr[-2000:]
    yield from ((each, folder / f"{each}.gguf") for each in others)


def check_keys(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Assert that the keys are the same, except for the two lists above."""
    for key in ours.keys() | theirs.keys():
        if key not in theirs:
            assert key.partition(".")[2] in EXPLICIT_IN_OURS, key
        elif key not in ours:
            assert theirs[key] == REDUNDANT_IN_UPSTREAMS.get(key), key
        else:
            assert ours[key] == theirs[key], key


def checkpoint_of(name: str, folder: Path) -> Path:
    """Save the checkpoint of a row of the conformance matrix, with rows of 256."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    row = ROWS[name]
    kv_heads = 8 if "kv_lora_rank" in row.config else 2
    row = replace(row, config=row.config | WIDE | {"num_key_value_heads": kv_heads})
    make_model(row, RopeScaling()).save_pretrained(folder)
    if name == "gemma3":  # upstream's converter takes the number of tokens from tokenizer.json
        vocabulary = {str(i): i for i in range(256)}
        tokenizer = {"added_tokens": [], "model": {"vocab": vocabulary}}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if name == GPT_NEOX:  # published names of values, which transformers 5 does not save
        config = json.loads((folder / "config.json").read_text())
        del config["rope_parameters"]
        config |= {"rotary_pct": 0.5, "rotary_emb_base": 10000}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_an_architectures_files_are_those_of_upstreams_two_steps(
    tree: Path, tmp_path: Path, name: str
) -> None:
    checkpoint, ours, theirs = tmp_path / "hf", tmp_path / "ours.gguf", tmp_path / "theirs"
    checkpoint_of(name, checkpoint)
    theirs.mkdir()
    options = ["--no-tokenizer", *(["--published-config"] if name == GPT_NEOX else [])]
    for type_, file in two_steps(tree, checkpoint, theirs, "f32", *options):
        convert(checkpoint, ours, type=type_, tokenizer=False, force=True)
        (our_keys, our_tensors), (their_keys, their_tensors) = contents(ours), contents(file)
        assert our_tensors == their_tensors, type_
        check_keys(our_keys, their_keys)


SCALINGS = {
    "llama": RopeScaling("llama3", 8.0, 64, low_freq_factor=1.0, high_freq_factor=4.0),
    "phi3, 3/4 rotary": RopeScaling(
        "longrope",
        4.0,
        64,
        short_factor=tuple(np.linspace(1, 1.5, 12).tolist()),
        long_factor=tuple(np.linspace(1, 9, 12).tolist()),
    ),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_a_trained_scaling_is_in_upstreams_tensors(tree: Path, tmp_path: Path, name: str) -> None:
    """So that every llama.cpp has it. Upstream computes the factors in float32."""
    transformers.logging.set_verbosity_error()
    make_model(ROWS[name], SCALINGS[name]).save_pretrained(tmp_path / "hf")
    (tmp_path / "theirs").mkdir()
    _, theirs = next(two_steps(tree, tmp_path / "hf", tmp_path / "theirs", "f32", "--no-tokenizer"))
    convert(tmp_path / "hf", tmp_path / "ours.gguf", type="f32", tokenizer=False)
    ours, expected = (gguf.GGUFReader(path) for path in (tmp_path / "ours.gguf", theirs))
    tensors = {each.name: each.data for each in expected.tensors}
    assert {each.name for each in ours.tensors} == tensors.keys()
    assert any("rope_f" in name for name in tensors)
    for each in ours.tensors:
        assert each.shape.tolist() == list(tensors[each.name].shape[::-1])
        assert np.allclose(each.data, tensors[each.name], rtol=1e-6, atol=0), each.name
    assert read_model(theirs).scaling.method == SCALINGS[name].method
    assert read_model(tmp_path / "ours.gguf").scaling.method == SCALINGS[name].method


@pytest.mark.slow
def test_smollm2s_files_are_those_of_upstreams_two_steps(
    tree: Path, smollm2_path: Path, tmp_path: Path
) -> None:
    checkpoint, ours, theirs = tmp_path / "hf", tmp_path / "ours.gguf", tmp_path / "theirs"
    theirs.mkdir()
    save_smollm2(smollm2_path, checkpoint, "bfloat16")
    for type_, file in two_steps(tree, checkpoint, theirs, "bf16"):
        convert(checkpoint, ours, type=type_, force=True)
        (our_keys, our_tensors), (their_keys, their_tensors) = contents(ours), contents(file)
        assert our_tensors == their_tensors, type_
        check_keys(our_keys, their_keys)
