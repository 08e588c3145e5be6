"""Converted files against upstream's own converter: the same tensors, the same keys but for a few."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers
from conformance import ROWS, make_model
from hf_checkpoints import convert_weights
from libraries import ROOT
from tiny_gguf import contents

from yarn_gguf import RopeScaling

# keys of ours that upstream's converter leaves to the library's defaults, or to what that derives
SAID_OUTRIGHT = (
    *("vocab_size", "rope.dimension_count", "rope.freq_base", "rope.scaling.type"),
    *("attention.key_length", "attention.value_length", "attention.sliding_window_pattern"),
    *("expert_gating_func", "expert_weights_norm"),
)
# keys of upstream's converter that say nothing: a head's size as derived, windows of no tokens, and
# the default of transformers' class in a checkpoint without scaling
SAYS_NOTHING = {
    "starcoder2.attention.key_length": 32,
    "starcoder2.attention.value_length": 32,
    "phi3.attention.sliding_window": 0,
    "phi3.rope.scaling.original_context_length": 4096,
}
QUICK = ("llama", "deepseek-v3", "gpt-oss")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upstream's converter, out of the source package that the build has fetched."""
    sdist = next((ROOT / "build" / "download").glob("llama_cpp_python-*.tar.gz"))
    folder = tmp_path_factory.mktemp("upstream")
    wanted = (
        "/vendor/llama.cpp/conversion/",
        "/vendor/llama.cpp/convert_hf",
        "/vendor/llama.cpp/gguf-py/gguf/",
    )
    with tarfile.open(sdist) as archive:
        members = [each for each in archive if any(part in each.name for part in wanted)]
        archive.extractall(folder, members, filter="data")
    return next(folder.glob("*/vendor/llama.cpp"))


def checkpoint_of(name: str, folder: Path) -> Path:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    make_model(ROWS[name], RopeScaling()).save_pretrained(folder)
    return folder


# upstream's converter cannot read the GPT-NeoX config of transformers 5 (KeyError: 'rotary_pct')
OTHERS = [name for name in ROWS if name not in (*QUICK, "gpt-neox, 1/2 rotary")]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_tensors_and_keys_are_those_of_upstream_s_converter(tree: Path, tmp_path: Path, name: str) -> None:
    checkpoint = checkpoint_of(name, tmp_path / "checkpoint")
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    tokenizer = checkpoint / "tokenizer.json"
    if name == "gemma3":  # upstream's takes the number of tokens from there
        vocabulary = {str(i): i for i in range(256)}
        tokenizer.write_text(json.dumps({"added_tokens": [], "model": {"vocab": vocabulary}}))
    command = [sys.executable, ROOT / "tests" / "upstream_converter.py", tree, checkpoint, theirs]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    tokenizer.unlink(missing_ok=True)
    convert_weights(checkpoint, ours, type="f32")
    (our_keys, our_tensors), (their_keys, their_tensors) = contents(ours), contents(theirs)
    assert our_tensors == their_tensors
    for key in our_keys.keys() | their_keys.keys():
        if key not in their_keys:
            assert key.partition(".")[2] in SAID_OUTRIGHT, key
        elif key not in our_keys:
            assert their_keys[key] == SAYS_NOTHING.get(key), key
        else:
            assert our_keys[key] == their_keys[key], key
