"""Dynamic scaling that a file or the caller asks for."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from dynamics import F32, L, static_logits, tiny_llama
from libraries import relative_error
from reading import read
from tiny_gguf import write_tiny

from yarn_gguf import DynamicScaling, RopeScaling, extend
from yarn_gguf.rope.dynamic import dynamic_of
from yarn_gguf.rope.read import read_model
from yarn_gguf.run.llama import Llama


def test_a_file_can_ask_for_dynamic_scaling(checkpoint, tokens, tmp_path: Path) -> None:
    _, plain = checkpoint("llama")
    path = tmp_path / "dynamic.gguf"
    ramp = {"beta_fast": 16.0, "beta_slow": 2.0}
    extend(plain, RopeScaling("yarn", 8.0, **ramp), dynamic="growth", output=path)
    assert read_model(path).dynamic == DynamicScaling.of(original_max_position_embeddings=L, **ramp)
    assert read_model(path).scaling == RopeScaling("yarn", 8.0, L, **ramp)
    with closing(tiny_llama(path)) as llama:
        read(llama, tokens[: 2 * L])
        assert llama.dynamic_state.factor == pytest.approx(2)
    extend(path, RopeScaling("yarn", 8.0))
    assert read_model(path).dynamic is None


@pytest.mark.parametrize("options", [{"ramp": "rotations"}, {"truncate": False}], ids=str)
def test_the_ramp_of_a_file_is_that_of_its_dynamic_scaling(tmp_path: Path, options: dict) -> None:
    path = write_tiny(tmp_path / "a.gguf")
    extend(path, RopeScaling("yarn", 4.0, **options), dynamic="request")
    assert read_model(path).dynamic == DynamicScaling.of(
        "yarn", policy="request", original_max_position_embeddings=8192, **options
    )


@pytest.mark.filterwarnings("ignore:.*replaces the dynamic scaling")
@pytest.mark.parametrize("caller", [{"rope_scaling": "none"}, {"rope_scaling_type": 0}], ids=str)
def test_the_scaling_of_the_caller_goes_before_that_of_a_dynamic_file(
    checkpoint, tokens, tmp_path, caller
) -> None:
    path = tmp_path / "dynamic.gguf"
    extend(checkpoint("llama")[1], RopeScaling("yarn", 8.0), dynamic="growth", output=path)
    with closing(Llama(path, n_ctx=4 * L, verbose=False, **F32, **caller)) as llama:
        got = read(llama, tokens[: 2 * L])
        assert llama.dynamic_state.factor == 1
    assert np.array_equal(got, static_logits(path, tokens[: 2 * L], RopeScaling(), n_ctx=4 * L))


def test_a_llama_changes_to_another_scaling_and_back_to_that_of_the_file(
    checkpoint, tokens, tmp_path
) -> None:
    path = tmp_path / "dynamic.gguf"
    extend(checkpoint("llama")[1], RopeScaling("yarn", 8.0), dynamic="growth", output=path)
    with closing(tiny_llama(path)) as llama:
        expected = read(llama, tokens[: 2 * L])
        llama.set_rope_scaling("none")
        assert not np.array_equal(read(llama, tokens[: 2 * L]), expected)
        llama.set_rope_scaling(None)
        assert np.array_equal(read(llama, tokens[: 2 * L]), expected)
        assert llama.dynamic_state.factor == pytest.approx(2)


def test_only_a_name_with_the_prefix_asks_for_dynamic_scaling() -> None:
    assert dynamic_of("dynamic-by-parts") == DynamicScaling.of("by-parts")
    assert [dynamic_of(name) for name in ("by-parts", "yarn", "static-yarn", "none")] == [None] * 4


def test_a_fine_tuned_file_begins_at_its_own_factor(tmp_path: Path) -> None:
    keys = {
        "type": "yarn",
        "factor": 4.0,
        "original_context_length": 2048,
        "dynamic": "exact",
        "finetuned": True,
    }
    path = write_tiny(
        tmp_path / "a.gguf", **{f"rope__scaling__{name}": value for name, value in keys.items()}
    )
    assert read_model(path).dynamic == DynamicScaling.of(
        policy="exact", original_max_position_embeddings=2048, factor=4.0
    )


def test_another_scaling_drops_the_fine_tuning_of_the_first(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "a.gguf")
    extend(path, RopeScaling("yarn", 16.0), dynamic="growth", finetuned=True)
    assert read_model(path).dynamic.scaling.factor == 16
    extend(path, RopeScaling("yarn", 4.0), dynamic="growth")
    assert read_model(path).dynamic.scaling.factor == 1


def test_growth_begins_at_the_smallest_factor(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    with closing(tiny_llama(path, DynamicScaling.of(factor=2.0))) as llama:
        got = read(llama, tokens[:L])
        assert llama.dynamic_state.factor == 2
    assert relative_error(got, static_logits(path, tokens[:L], RopeScaling("yarn", 2.0, L))) < 1e-4
