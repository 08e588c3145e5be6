"""Dynamic scaling on a small model of each architecture of llama.cpp, made by dynamic_archs.py."""

import re

import dynamic_archs
import pytest
from dynamic_archs import Line
from libraries import ROOT

# relative errors; a wrong rotation or temperature makes 0.1 and more
LIMITS = {"f32": 1e-6, "f16": 2e-3, "q8_0": 4e-2, "logits": 3e-5}


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return dynamic_archs.examine()


def with_verdict(verdict: str, lines: list[Line]) -> list[Line]:
    return [line for line in lines if line.verdict == verdict]


def test_every_architecture_is_accepted_or_refused_with_a_reason(lines: list[Line]) -> None:
    assert len(with_verdict("accepted", lines)) >= 90
    assert len(with_verdict("refused", lines)) >= 50
    assert not [line.title for line in lines if line.verdict not in ("accepted", "refused", "none")]
    assert not [line.title for line in with_verdict("refused", lines) if not line.reason]


def test_a_context_that_refuses_goes_on_as_before(lines: list[Line]) -> None:
    assert not [line.title for line in with_verdict("refused", lines) if not line.goes_on]


@pytest.mark.parametrize("what", dynamic_archs.ERRORS)
def test_growth_has_the_keys_and_logits_of_static_scaling(lines: list[Line], what: str) -> None:
    limit = 0.0 if what == "below" or what.endswith("unscaled") else LIMITS[what.split()[0]]
    errors = {line.title: line.errors[what] for line in with_verdict("accepted", lines)}
    compared = {title: error for title, error in errors.items() if error is not None}
    assert not {title: error for title, error in compared.items() if not error <= limit}
    # two have heads that are no whole blocks of 32, Chameleon masks logits, and HRM runs layers repeatedly
    excused = {"q8_0": {"laguna (MoE)", "step35 (MoE)"}, "logits": {"chameleon (dense)", "hrm_text (dense)"}}
    assert errors.keys() - compared.keys() == excused.get(what.split()[0], set())
    assert all(line.scaled for line in with_verdict("accepted", lines))


def test_static_scaling_changes_a_refused_model_unless_it_has_no_rope_to_scale(
    lines: list[Line],
) -> None:
    """Else a refusal could hide a rope that was overlooked."""
    nothing_to_scale = r"no rotary embedding|caches no keys from a rope that can be scaled|has no cache"
    for line in with_verdict("refused", lines):
        assert line.is_reached == (re.search(nothing_to_scale, line.reason) is None), line.title


def test_the_published_table_has_the_same_verdicts(lines: list[Line]) -> None:
    """`make dynamic-architectures` makes docs/dynamic-architectures.md."""
    published = (ROOT / "docs" / "dynamic-architectures.md").read_text()
    assert facts(published) == facts(dynamic_archs.page(lines))


def facts(page: str) -> list[str]:
    """Return the headings and the first two cells of each row: everything but measurements."""
    return re.findall(r"^#{2,3} .*|^\| .*? \| [^|]*", page, re.MULTILINE)
