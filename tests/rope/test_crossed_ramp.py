"""An index ramp that ends before it begins is refused on every path, and nothing is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_gguf import write_tiny

from yarn_gguf import DynamicScaling, RopeScaling, RopeScalingError, extend, scaling_from_gguf
from yarn_gguf.model_file.inspect import inspect_file
from yarn_gguf.rope.gguf_write import scaling_keys
from yarn_gguf.rope.hf_rope import read_hf_rope
from yarn_gguf.rope.llama_cpp import context_arguments, frequency_table
from yarn_gguf.rope.model import RotaryEmbedding
from yarn_gguf.rope.read import read_model

DIM = 64
CROSSED = {  # name: original context in tokens, and base
    "below the first dimension": (1, 100000.0),
    "beyond the last dimension": (100_000_000, 500.0),
}
MESSAGE = r"original_max_position_embeddings must be one with which the ramp, .* got {}"


@pytest.fixture(params=CROSSED.values(), ids=CROSSED)
def crossed(request) -> tuple[int, float]:
    return request.param


@pytest.fixture(params=["by-parts", "yarn"])
def method(request) -> str:
    return request.param


@pytest.fixture(params=[True, False], ids=["truncated", "exact"])
def scaling(request, crossed, method) -> RopeScaling:
    return RopeScaling(method, 4.0, crossed[0], truncate=request.param)


def refuses(context: int):
    return pytest.raises(RopeScalingError, match=MESSAGE.format(context))


def test_by_the_scaling_itself(crossed, scaling) -> None:
    context, base = crossed
    for use in (scaling.check, scaling.frequencies, scaling.interpolation):
        with refuses(context):
            use(DIM, base)


def test_by_a_dynamic_scaling_whatever_its_policy(crossed, scaling) -> None:
    context, base = crossed
    for policy in ("growth", "request", "exact"):
        with refuses(context):
            DynamicScaling(scaling, policy).check(DIM, base)


def test_by_llama_cpp_s_arguments_and_tables(crossed, method) -> None:
    context, base = crossed
    model = RotaryEmbedding("llama", DIM, base)
    with refuses(context):
        context_arguments(RopeScaling(method, 4.0, context), model)
    with refuses(context):
        frequency_table(RopeScaling(method, 4.0, context, truncate=False), model, 4096)


@pytest.mark.parametrize("dynamic", [None, "growth", "request", "exact"])
def test_by_the_keys_of_a_file(crossed, scaling, dynamic: str | None) -> None:
    context, base = crossed
    with refuses(context):
        scaling_keys(RotaryEmbedding("llama", DIM, base), scaling, dynamic)
    if dynamic is not None:
        with refuses(context):
            scaling_keys(RotaryEmbedding("llama", DIM, base), scaling, DynamicScaling(scaling, dynamic))


@pytest.mark.parametrize("dynamic", [None, "growth"])
@pytest.mark.parametrize("output", [None, "new.gguf"])
def test_by_extend_which_writes_nothing(tmp_path: Path, crossed, scaling, dynamic, output) -> None:
    context, base = crossed
    path = write_tiny(tmp_path / "tiny.gguf", rope__freq_base=base)
    before = path.read_bytes(), path.stat().st_mtime_ns
    with refuses(context):
        extend(path, scaling, dynamic=dynamic, output=output and tmp_path / output)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert list(tmp_path.iterdir()) == [path]


def test_by_extend_where_the_original_context_is_given_apart_or_is_the_file_s(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", context_length=1)
    before = path.read_bytes()
    for original_context in (None, 1):
        with refuses(1):
            extend(path, RopeScaling("yarn", 4.0), original_context=original_context)
    assert path.read_bytes() == before


def test_by_the_file_that_asks_for_it_with_its_name_and_the_remedy(tmp_path: Path, crossed) -> None:
    context, base = crossed
    keys = {"type": "yarn", "factor": 4.0, "original_context_length": context, "dynamic": "growth"}
    path = write_tiny(
        tmp_path / "tiny.gguf",
        rope__freq_base=base,
        **{f"rope__scaling__{name}": value for name, value in keys.items()},
    )
    named = rf"tiny\.gguf: rope scaling {MESSAGE.format(context)} .*yarn-gguf extend writes a sound set"
    with pytest.raises(RopeScalingError, match=named):
        scaling_from_gguf(path)
    with pytest.raises(RopeScalingError, match=named):
        read_model(path).dynamic  # noqa: B018
    report = inspect_file(path)
    assert report.scaling is report.dynamic is None
    assert report.problem is not None and "tiny.gguf: rope scaling original_max_position" in report.problem
    assert extend(path, RopeScaling("linear", 4.0, 4096)).scaling == RopeScaling("linear", 4.0, 4096)


def test_by_the_checkpoint_that_asks_for_it(tmp_path: Path, crossed) -> None:
    context, base = crossed
    section = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": context}
    config = {"head_dim": DIM, "max_position_embeddings": 4 * context, "rope_theta": base}
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_scaling": section}))
    with pytest.raises(RopeScalingError, match=rf"config\.json: rope_scaling: .*{MESSAGE.format(context)}"):
        read_hf_rope(tmp_path)


def test_a_ramp_by_rotations_has_no_bounds_to_cross(crossed, scaling) -> None:
    _, base = crossed
    by_rotations = replace(scaling, ramp="rotations")
    by_rotations.check(DIM, base)
    DynamicScaling(by_rotations).check(DIM, base)
    assert scaling_keys(RotaryEmbedding("llama", DIM, base), by_rotations)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("context", [1, 100_000_000])
def test_a_ramp_whose_bounds_cross_is_refused_as_transformers_and_ggml_take_it_for_two_things(
    context, truncate
):
    scaling = RopeScaling("yarn", 4.0, context, truncate=truncate)
    with pytest.raises(RopeScalingError, match=f"original_max_position_embeddings .* got {context}"):
        scaling.frequencies(64, 500.0)
