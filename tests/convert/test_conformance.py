"""Logits of every architecture with every scaling method, compared with transformers; see conformance.py."""

import re
from collections.abc import Iterator

import conformance
import pytest
from conformance import COLUMNS, LIMIT, ROWS, Column
from libraries import ROOT, UNPATCHED, LibraryProcess, patched


@pytest.fixture(scope="module")
def ours() -> Iterator[LibraryProcess]:
    with LibraryProcess(patched()) as process:
        yield process


@pytest.fixture(scope="module")
def unpatched() -> Iterator[LibraryProcess]:
    with LibraryProcess(UNPATCHED) as process:
        yield process


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", ROWS)
def test_logits_are_transformers(row: str, column: str, ours: LibraryProcess) -> None:
    assert conformance.measure(ROWS[row], COLUMNS[column], ours)[0] <= LIMIT


@pytest.mark.parametrize("row", ["deepseek-v2", "deepseek-v3"])
def test_mscale_all_dim_alone_leaves_the_temperature_at_its_default(row: str, ours: LibraryProcess) -> None:
    """The file's yarn_attn_factor leaves the rope op's operand at 1, and 1 does not mean "not given"."""
    column = Column({"method": "yarn", "factor": 4.0, "mscale_all_dim": 0.7})
    assert conformance.measure(ROWS[row], column, ours)[0] <= LIMIT


def test_the_unpatched_library_fails_a_cell_that_ours_passes(unpatched: LibraryProcess) -> None:
    assert conformance.measure(ROWS["llama"], COLUMNS["YaRN 4, rotations"], unpatched)[0] > 0.1


def test_the_published_matrix_has_every_cell() -> None:
    """After adding a row or a column, run `make conformance`: it writes docs/conformance.md."""
    lines = (ROOT / "docs" / "conformance.md").read_text().splitlines()
    table = [re.split(r" \| ", line.strip("| ")) for line in lines if line.startswith("| ")]
    assert table[0] == list(ROWS)
    assert [row[0] for row in table[1:]] == list(COLUMNS)
    assert all(len(row) == len(ROWS) + 1 for row in table[1:])
