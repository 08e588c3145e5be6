"""The patch series is complete and described, and applies without fuzz or not at all."""

import re
import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from libraries import ROOT
from upstream_tree import pinned_tree

PATCHES = ROOT / "cpp_patches"
SERIES = [line for line in (PATCHES / "series").read_text().splitlines() if line]


@pytest.fixture(scope="module")
def pristine() -> Path:
    return pinned_tree()


@pytest.mark.parametrize("name", SERIES)
def test_every_patch_says_why_it_exists(name):
    header = (PATCHES / "patches" / name).read_text().partition("---\n")[0]
    for field in ("Description", "Origin", "Forwarded"):
        assert re.search(rf"^{field}: \S", header, re.MULTILINE), f"{name} has no {field}"


def test_every_patch_is_in_the_series_and_in_the_readme():
    assert sorted(SERIES) == sorted(path.name for path in (PATCHES / "patches").iterdir())
    readme = (PATCHES / "README.md").read_text()
    assert all(f"| {name[:4]} |" in readme for name in SERIES)


def test_import_and_export_change_nothing(pristine):
    command = [sys.executable, PATCHES / "tools" / "series.py", "check", pristine]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def included_units(folder: Path) -> dict[str, set[str]]:
    """Return {unit: the other units that it includes} for a folder of C++. A unit: the files of one stem."""
    units = {}
    for path in folder.iterdir():
        names = re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE)
        units.setdefault(path.stem, set()).update(Path(name).stem for name in names)
    return {unit: {each for each in units[unit] if each in units and each != unit} for unit in units}


def circle(units: dict[str, set[str]]) -> list[str]:
    """Return units that include one another in a circle, in order; empty if there is no circle."""
    try:
        TopologicalSorter(units).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_includes_of_our_sources_go_one_way():
    assert circle(included_units(PATCHES / "src")) == []


def test_a_circle_of_includes_is_found(tmp_path):
    (tmp_path / "a.h").write_text("")
    (tmp_path / "a.cpp").write_text('#include "a.h"\n#include "b.h"\n#include <vector>\n')
    (tmp_path / "b.h").write_text('#include "llama.h"\n')
    assert circle(included_units(tmp_path)) == []
    (tmp_path / "b.cpp").write_text('#include "b.h"\n#include "a.h"\n')
    assert set(circle(included_units(tmp_path))) == {"a", "b"}


def test_a_patch_that_does_not_apply_stops_the_build_with_its_name_and_the_reason(pristine, tmp_path):
    """The tree is the caller's: nothing is downloaded, and nothing in it changes."""
    tree = tmp_path / "llama.cpp"
    shutil.copytree(pristine, tree, ignore=shutil.ignore_patterns("common", "tests"))
    source = tree / "src" / "llama-kv-cells.h"
    source.write_text(source.read_text().replace("p_old - pos[i]", "p_old-pos[i]"))
    given = source.read_bytes()
    done = configure(tmp_path / "build", tree)
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "The patch 0003-memory-operations-that-are-right-or-refused.patch does not apply" in said
    assert "src/llama-kv-cells.h:4" in done.stderr
    assert source.read_bytes() == given


def test_a_folder_that_is_no_llama_cpp_is_refused_by_name(tmp_path):
    done = configure(tmp_path / "build", tmp_path)
    assert done.returncode != 0
    assert f"{tmp_path} is not a llama.cpp tree" in " ".join(done.stderr.split())


def configure(build: Path, tree: Path) -> subprocess.CompletedProcess:
    command = [
        "cmake",
        "-S",
        ROOT,
        "-B",
        build,
        f"-DLLAMA_CPP_SOURCE_DIR={tree}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    return subprocess.run(command, capture_output=True, text=True)
