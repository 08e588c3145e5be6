"""verify: its errors between files and checkpoints whose difference is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hf_checkpoints import convert_weights, save_checkpoint
from multimodal_checkpoints import save_multimodal

from yarn_gguf.cli import main
from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.evaluate.verify import verify
from yarn_gguf.rope.scaling import RopeScaling

TOKENS = np.random.default_rng(0).integers(3, 320, 640).tolist()  # 2.5 times the original context


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("hf"), num_hidden_layers=2)


def test_a_file_in_float32_agrees_with_its_checkpoint(folder: Path, tmp_path: Path) -> None:
    (path,) = convert_weights(folder, tmp_path / "out.gguf", type="f32")
    found = verify(path, folder, TOKENS[:300])
    assert [(each.start, each.stop) for each in found] == [
        (0, 64),
        (64, 128),
        (128, 192),
        (192, 256),
        (256, 300),
    ]
    for each in found:
        assert each.logit_error < 2e-3  # a cache of float16
        assert each.kl_divergence < 1e-6
        assert each.top1_agreement > 0.9


@pytest.mark.parametrize("method", ["none", "yarn", "ntk", "linear"])
@pytest.mark.parametrize("own", [{}, {"rope_type": "linear", "factor": 2.0}])
def test_an_extended_file_is_compared_under_its_own_scaling(tmp_path: Path, method: str, own: dict) -> None:
    rope_parameters = {"rope_type": "default", "rope_theta": 10000.0} | own
    folder = save_checkpoint(tmp_path / "hf", num_hidden_layers=2, rope_parameters=rope_parameters)
    scaling = RopeScaling(method, 4.0 if method != "none" else 1.0)
    (path,) = convert_weights(folder, tmp_path / "out.gguf", type="f32", scaling=scaling)
    assert max(each.logit_error for each in verify(path, folder, TOKENS)) < 2e-3


@pytest.mark.parametrize("method", ["none", "yarn"])
def test_a_multimodal_checkpoint_is_asked_for_its_text_model(tmp_path: Path, method: str) -> None:
    folder = tmp_path / "hf"
    save_multimodal(folder, "Llava", "llama")
    scaling = RopeScaling(method, 4.0 if method != "none" else 1.0)
    (path,) = convert_weights(folder, tmp_path / "out.gguf", type="f32", scaling=scaling)
    tokens = [each % 250 for each in TOKENS[:300]]  # none of them is an image
    assert max(each.logit_error for each in verify(path, folder, tokens)) < 2e-3


def test_coarser_weights_have_larger_errors(folder: Path, tmp_path: Path) -> None:
    divergences = []
    for type_ in ("f32", "q8_0", "q4_0", "q2_k"):
        (path,) = convert_weights(folder, tmp_path / f"{type_}.gguf", type=type_)
        (first, *_) = verify(path, folder, TOKENS[:128])
        divergences.append(first.kl_divergence)
    assert divergences == sorted(divergences)
    assert divergences[-1] > 100 * divergences[0]


def test_a_file_of_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    other = save_checkpoint(tmp_path / "hf", num_hidden_layers=2, vocab_size=352)
    (path,) = convert_weights(other, tmp_path / "out.gguf", type="f32")
    with pytest.raises(YarnGGUFError, match="vocabularies of 352 and 320 tokens"):
        verify(path, folder, TOKENS[:16])


def test_the_command_reads_beyond_the_original_context_and_prints_json(
    folder: Path, tmp_path: Path, capsys
) -> None:
    (path,) = convert_weights(folder, tmp_path / "out.gguf", type="q8_0")
    assert main(["verify", str(path), "--reference", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["stop"] for each in found] == [64, 128, 192, 256, 320]
    assert all(0 < each["logit_error"] < 0.1 for each in found)
    assert main(["verify", str(path), "--reference", str(folder), "-n", "32"]) == 0
    assert "0 - 32" in capsys.readouterr().out
