"""Short names of scalings, such as yarn:4."""

from __future__ import annotations

import pytest

from yarn_gguf import DynamicScaling, RopeScaling, RopeScalingError
from yarn_gguf.rope.names import Variant, name_of, parse_variant


@pytest.mark.parametrize(
    ("text", "scaling"),
    [
        ("none", RopeScaling()),
        ("file", None),
        ("yarn", RopeScaling("yarn", 3.0)),
        ("ntk:1", RopeScaling()),
        ("yarn:1,attention_factor=1.5", RopeScaling("yarn", 1.0, attention_factor=1.5)),
        ("yarn:4", RopeScaling("yarn", 4.0)),
        ("yarn,factor=2", RopeScaling("yarn", 2.0)),
        ("by-parts:2,ramp=rotations", RopeScaling("by-parts", 2.0, ramp="rotations")),
        (
            "yarn:2,attention_factor=1.5,truncate=false",
            RopeScaling("yarn", 2.0, attention_factor=1.5, truncate=False),
        ),
        ("dynamic-yarn", DynamicScaling.of("yarn")),
        ("dynamic-linear,policy=request", DynamicScaling.of("linear", policy="request")),
    ],
)
def test_scalings_have_short_names(text: str, scaling) -> None:
    assert parse_variant(text, 3.0) == Variant(text, scaling)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jarn:2", "method must be one of"),
        ("yarn:two", "a number is expected after the colon, got 'two'"),
        ("yarn:0.5", "factor must be a number >= 1"),
        ("yarn:2,beta", "NAME=VALUE is expected after the comma, got 'beta'"),
        ("yarn:2,beta_fats=3", "'beta_fats' is none of"),
        ("dynamic-yarn:2", "a dynamic factor follows the text"),
        ("yarn:2,factor=4", "the factor is given twice"),
    ],
)
def test_a_bad_name_of_a_scaling_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(RopeScalingError, match=message):
        parse_variant(text, 3.0)


def test_a_name_is_short() -> None:
    assert name_of(RopeScaling()) == "none"
    assert name_of(RopeScaling("yarn", 2.0, 8192)) == "yarn:2"
    assert name_of(RopeScaling("yarn", 1.5, truncate=False, beta_slow=0.5)) == (
        "yarn:1.5,beta_slow=0.5,truncate=false"
    )
    assert name_of(DynamicScaling.of("by-parts", ramp="rotations")) == "dynamic-by-parts,ramp=rotations"
