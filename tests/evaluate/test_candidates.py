"""The candidates of advise: each fits the context, has a name, and can be written into a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny

from yarn_gguf import DynamicScaling, RopeScaling
from yarn_gguf.cli import main
from yarn_gguf.evaluate.search.candidates import Candidate, Space
from yarn_gguf.model_file.extend_options import options_of
from yarn_gguf.rope.names import parse_variant
from yarn_gguf.rope.read import read_model

SPACE = Space(64, 1e5, 8192, 12288)


def all_candidates(space: Space = SPACE) -> list[Candidate]:
    """Return the references, the first selection, and all their neighbours, at each step."""
    some = space.references() + space.first()
    near = [each for one in some for step in (1, 0.5, 0.25) for each in space.around(one, step)]
    return list({each.name: each for each in some + near}.values())


@pytest.mark.parametrize("context", [8300, 12288, 20000, 262144])
def test_every_candidate_makes_the_context_fit(context: int) -> None:
    space = Space(64, 1e5, 8192, context)
    for each in all_candidates(space):
        if each.name != "none":
            assert round(space.static_of(each.scaling).factor * 8192) >= context, each.name


def test_every_candidate_s_name_is_that_of_its_scaling() -> None:
    for each in all_candidates():
        assert parse_variant(each.name, 99.0).scaling.with_original_context(8192) == each.scaling


def test_the_first_selection_varies_every_field_that_is_searched() -> None:
    found = SPACE.references() + SPACE.first()
    scalings = [each.scaling for each in found]
    assert {each.method for each in scalings} == {"none", "linear", "ntk", "by-parts", "yarn"}
    assert {each.method for each in scalings if isinstance(each, DynamicScaling)} == {
        *("linear", "ntk", "by-parts", "yarn")
    }
    static = [each for each in scalings if isinstance(each, RopeScaling)]
    for name, values in (
        ("factor", static),
        ("attention_factor", static),
        ("beta_fast", map(SPACE.static_of, scalings)),
        ("beta_slow", map(SPACE.static_of, scalings)),
        ("ramp", map(SPACE.static_of, scalings)),
    ):
        assert len({getattr(each, name) for each in values}) > 1, name
    assert len({each.effect for each in found}) == len(found)


def test_neighbours_differ_in_one_value_and_less_at_a_smaller_step() -> None:
    (yarn,) = (each for each in SPACE.references() if each.name == "yarn:1.5")
    names = {each.name for each in SPACE.around(yarn, 1)}
    assert names == {
        "yarn:1.5",  # a smaller factor would not suffice
        "yarn:1.5,beta_fast=16",
        "yarn:1.5,beta_fast=64",
        "yarn:1.5,beta_slow=0.5",
        "yarn:1.5,beta_slow=2",
        "yarn:1.5,attention_factor=1.0203",  # 1 + 0.05 ln 1.5
        "yarn:1.5,attention_factor=1.0608",
        "yarn:1.784",
        "dynamic-yarn",
    }
    assert "yarn:1.5,beta_fast=45.3" in {each.name for each in SPACE.around(yarn, 0.5)}


def test_scalings_that_differ_in_name_alone_are_tried_once() -> None:
    """Bounds of the index ramp are rounded to whole dimensions."""
    one = SPACE.candidate(RopeScaling("yarn", 1.5, beta_slow=1.0))
    same = SPACE.candidate(RopeScaling("yarn", 1.5, beta_slow=0.999))
    other = SPACE.candidate(RopeScaling("yarn", 1.5, beta_slow=0.5))
    assert one.effect == same.effect != other.effect
    assert one.effect != SPACE.candidate(DynamicScaling.of("yarn")).effect
    short = Space(64, 1e5, 128, 192)  # no dimension makes 16, 32 or 64 rotations within 128 tokens
    names = [each.name for each in short.first()]
    assert "dynamic-yarn,beta_fast=16" in names and "dynamic-yarn,beta_fast=64" not in names


def test_the_command_that_is_printed_writes_the_candidate(tmp_path: Path) -> None:
    path, output = write_tiny(tmp_path / "tiny.gguf"), tmp_path / "out.gguf"
    for each in all_candidates():
        static = SPACE.static_of(each.scaling)
        policy = each.scaling.policy if isinstance(each.scaling, DynamicScaling) else None
        options = options_of(static, policy)
        assert main(["extend", str(path), "-o", str(output), "--force", *options]) == 0
        written = read_model(output)
        again = written.dynamic or written.scaling
        kind, temperature, table = SPACE.candidate(again).effect
        assert kind == each.effect[0]
        np.testing.assert_allclose([temperature, *table], [each.effect[1], *each.effect[2]], atol=2e-6)
        assert written.context_length >= (12288 if each.name != "none" else 8192)
