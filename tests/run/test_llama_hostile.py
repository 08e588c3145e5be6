"""Bad input raises an exception instead of ending the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import random_gguf
from hostile_requests import BARE, CASES, DEADLY, WRONG
from libraries import HELPERS, ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory, smollm2_path) -> Path:
    """A folder of models: "text" has a real vocabulary, "tokens" and "windows" have none.

    The attention of "encoder" is not causal. "adapter" is a LoRA adapter of another architecture.
    """
    folder = tmp_path_factory.mktemp("hostile")
    random_gguf.llama(folder / "text.gguf", smollm2_path)
    random_gguf.llama(folder / "tokens.gguf")
    random_gguf.gemma2(folder / "windows.gguf")
    random_gguf.bert(folder / "encoder.gguf", smollm2_path)
    random_gguf.adapter(folder / "adapter.gguf", arch="qwen2")
    return folder


def outcomes(folder: Path, *options: str) -> dict[str, str]:
    """Return the outcome of each case of hostile_requests.py."""
    line = [sys.executable, HELPERS / "hostile_requests.py", folder, *options]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{done.stdout[-500:]}\n{done.stderr[-2000:]}"
    return dict(each.split(": ", 1) for each in done.stdout.splitlines())


def test_bad_input_raises_an_exception_or_works(folder):
    """All cases run in one process, which must live to the end."""
    got = outcomes(folder)
    expected = {name: message.format(folder=folder) for name, (message, _) in CASES.items()}
    assert {name: got[name] for name in expected if not got[name].startswith(expected[name])} == {}


@pytest.mark.slow
def test_llama_cpp_python_ends_the_process_goes_wrong_or_gives_no_reason(folder):
    """Each case therefore shows something that our class adds."""
    got = outcomes(folder, "--upstream")
    assert {name: got[name] for name in DEADLY if not got[name].startswith("ENDS THE PROCESS: -")} == {}
    assert {name: got[name] for name in WRONG if got[name] != "works"} == {}
    bare = ("AssertionError", "ValueError", "RuntimeError")
    assert {name: got[name] for name in BARE if not got[name].startswith(bare)} == {}
