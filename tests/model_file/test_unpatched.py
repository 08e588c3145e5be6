"""unpatched_view agrees with the logits of a llama.cpp without our patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from libraries import UNPATCHED, logits, patched

from yarn_gguf.gguf.edit import change_keys
from yarn_gguf.model_file.extend import extend
from yarn_gguf.model_file.unpatched import unpatched_view
from yarn_gguf.rope.read import read_model
from yarn_gguf.rope.scaling import RopeScaling


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("linear", 4.0),
        RopeScaling("ntk", 4.0),
        RopeScaling("by-parts", 4.0),
        RopeScaling("yarn", 4.0),
        RopeScaling("yarn", 4.0, attention_factor=1.4),
        RopeScaling("yarn", 4.0, beta_fast=8.0),
    ],
    ids=["linear", "ntk", "by-parts", "yarn", "temperature", "beta_fast"],
)
def test_it_scales_as_the_file_says_exactly_where_we_say_so(
    smollm2_q8: Path, prose_tokens: list[int], tmp_path: Path, scaling: RopeScaling
) -> None:
    path, tokens = tmp_path / "model.gguf", prose_tokens[:32]
    extend(smollm2_q8, scaling, output=path)
    # with Q8_0 weights the last bits of an angle move logits by more than 0.01, so ours uses upstream's rope
    ours, theirs = (logits(library, path, tokens, upstream_rope=True) for library in (patched(), UNPATCHED))
    says_so = unpatched_view(read_model(path)) == ["scales as the file says"]
    assert np.allclose(ours, theirs, atol=1e-2) == says_so


def test_it_ignores_the_converter_s_temperature(
    smollm2_q8: Path, prose_tokens: list[int], tmp_path: Path
) -> None:
    tokens = prose_tokens[:32]
    default, other = tmp_path / "default.gguf", tmp_path / "other.gguf"
    extend(smollm2_q8, RopeScaling("yarn", 4.0), output=default)
    extend(smollm2_q8, RopeScaling("yarn", 4.0, attention_factor=1.4), output=other)
    model = read_model(other)
    change_keys(model.header, [], [model.key("rope.scaling.attn_factor")])  # the converter writes none
    (line,) = unpatched_view(read_model(other))
    assert line.startswith("uses the temperature 1.13863: it ignores")
    assert np.array_equal(logits(UNPATCHED, default, tokens), logits(UNPATCHED, other, tokens))


def test_it_scales_a_dynamic_file_by_the_whole_factor(
    smollm2_q8: Path, prose_tokens: list[int], tmp_path: Path
) -> None:
    static, dynamic = tmp_path / "static.gguf", tmp_path / "dynamic.gguf"
    extend(smollm2_q8, RopeScaling("yarn", 4.0), output=static)
    extend(smollm2_q8, RopeScaling("yarn", 4.0), dynamic="growth", output=dynamic)
    tokens = prose_tokens[:32]
    assert np.array_equal(logits(UNPATCHED, static, tokens), logits(UNPATCHED, dynamic, tokens))
    assert not np.allclose(
        logits(UNPATCHED, smollm2_q8, tokens), logits(UNPATCHED, dynamic, tokens), atol=0.1
    )
