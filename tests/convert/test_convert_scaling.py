"""The rope scaling of a converted file: the checkpoint's own, or another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hf_checkpoints import COMPRESSED_ATTENTION, convert_weights, save_checkpoint

from yarn_gguf.convert.plan import plan_conversion
from yarn_gguf.errors import RopeScalingError
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.read import read_model
from yarn_gguf.rope.scaling import RopeScaling

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


def test_a_given_scaling_replaces_the_checkpoints_own(folder: Path, tmp_path: Path) -> None:
    (path,) = convert_weights(folder, tmp_path / "out.gguf", type="q8_0", scaling=RopeScaling("yarn", 4.0))
    assert read_model(path).scaling == RopeScaling("yarn", 4.0, 256)
    assert read_model(path).context_length == 1024


@pytest.mark.parametrize(
    ("own", "context", "original"),
    [
        ({"rope_type": "linear", "factor": 8.0}, 256, 32),  # Together's Llama-2-7B-32K
        ({"rope_type": "llama3", "factor": 8.0, **LLAMA3}, 256, 32),
        ({"rope_type": "llama3", "factor": 32.0, **LLAMA3}, 256, 32),  # Llama 3.2
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256, 64),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
            1024,
            256,
        ),  # Qwen's recipe
    ],
)
def test_a_checkpoints_own_scaling_keeps_its_context(
    folder: Path, tmp_path: Path, own: dict, context: int, original: int
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] |= own
    (folder / "config.json").write_text(json.dumps(config))
    (path,) = convert_weights(folder, tmp_path / "out.gguf", type="q8_0")
    model = read_model(path)
    assert (model.context_length, model.original_context) == (context, original)
    assert model.scaling.factor == own["factor"]


def test_a_factor_that_follows_the_text_is_kept(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_scaling"] = {"type": "dynamic", "factor": 2.5}
    (folder / "config.json").write_text(json.dumps(config))
    convert_weights(folder, tmp_path / "a.gguf", type="f16")
    length = config["max_position_embeddings"]
    assert read_model(tmp_path / "a.gguf").dynamic == DynamicScaling.of(
        "ntk", policy="growth", original_max_position_embeddings=length, ntk_factor=2.5
    )
    convert_weights(folder, tmp_path / "b.gguf", type="f16", scaling=RopeScaling("yarn", 2.0))
    assert read_model(tmp_path / "b.gguf").dynamic is None


def test_a_scaling_that_attention_is_tied_to_is_not_replaced(tmp_path: Path) -> None:
    own = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    folder = save_checkpoint(
        tmp_path / "hf", "deepseek_v3", **COMPRESSED_ATTENTION, rope_parameters=own | {"rope_theta": 1e4}
    )
    plan_conversion(folder, type="q8_0", tokenizer=False)
    with pytest.raises(RopeScalingError, match="mscale_all_dim 1 ties this model's attention"):
        plan_conversion(folder, type="q8_0", tokenizer=False, scaling=RopeScaling("yarn", 8.0))
