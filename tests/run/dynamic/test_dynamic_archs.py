"""Dynamic scaling on a small model of every architecture of llama.cpp; see dynamic_archs.py."""

import re

import dynamic_archs
import pytest
from dynamic_archs import Line
from libraries import ROOT

# of errors; a wrong rotation or temperature makes 0.1 and more
LIMITS = {"f32": 1e-6, "f16": 2e-3, "q8_0": 4e-2, "logits": 3e-5}


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return dynamic_archs.examine()


def of(lines: list[Line], verdict: str) -> list[Line]:
    return [line for line in lines if line.verdict == verdict]


def test_every_architecture_is_accepted_or_refused_with_a_reason(lines: list[Line]) -> None:
    assert len(of(lines, "accepted")) >= 90
    assert len(of(lines, "refused")) >= 50
    assert not [line.title for line in lines if line.verdict not in ("accepted", "refused", "none")]
    assert not [line.title for line in of(lines, "refused") if not line.reason]


def test_a_context_that_refuses_goes_on_as_it_was(lines: list[Line]) -> None:
    assert not [line.title for line in of(lines, "refused") if not line.goes_on]


@pytest.mark.parametrize("what", dynamic_archs.ERRORS)
def test_after_growth_all_is_as_static_scaling_has_it(lines: list[Line], what: str) -> None:
    limit = 0.0 if what == "below" or what.endswith("unscaled") else LIMITS[what.split()[0]]
    errors = {line.title: line.errors[what] for line in of(lines, "accepted")}
    compared = {title: error for title, error in errors.items() if error is not None}
    assert not {title: error for title, error in compared.items() if not error <= limit}
    # heads of 80 are no blocks of 32; Chameleon's logits are masked; HRM's layers are run again and again
    excused = {"q8_0": {"laguna (MoE)"}, "logits": {"chameleon (dense)", "hrm_text (dense)"}}
    assert errors.keys() - compared.keys() == excused.get(what.split()[0], set())
    assert all(line.scaled for line in of(lines, "accepted"))


def test_static_scaling_reaches_what_is_refused_but_where_there_is_no_rope_to_scale(
    lines: list[Line],
) -> None:
    """So that no architecture is refused for a rope that was overlooked."""
    nothing_to_scale = r"no rotary embedding|caches no keys from a rope that can be scaled|has no cache"
    for line in of(lines, "refused"):
        assert line.is_reached == (re.search(nothing_to_scale, line.reason) is None), line.title


def test_the_published_table_says_the_same(lines: list[Line]) -> None:
    """docs/dynamic-architectures.md is from `make dynamic-architectures`."""
    published = (ROOT / "docs" / "dynamic-architectures.md").read_text()
    assert facts(published) == facts(dynamic_archs.page(lines))


def facts(page: str) -> list[str]:
    """Without its measurements."""
    return re.findall(r"^#{2,3} .*|^\| .*? \| [^|]*", page, re.MULTILINE)
