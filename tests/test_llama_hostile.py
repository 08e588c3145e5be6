"""No failure of the native library that can be caught before it aborts ends the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import random_gguf
from libraries import ROOT


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, smollm2_path) -> dict[str, str]:
    """What hostile_requests.py says of each of its cases, all in one process.

    Of its models "text" has a real vocabulary, "tokens" has none, and "encoder" is not causal.
    """
    folder = tmp_path_factory.mktemp("hostile")
    random_gguf.llama(folder / "text.gguf", smollm2_path)
    random_gguf.llama(folder / "tokens.gguf")
    random_gguf.bert(folder / "encoder.gguf", smollm2_path)
    line = [sys.executable, ROOT / "tests" / "hostile_requests.py", folder]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{done.stdout[-500:]}\n{done.stderr[-2000:]}"
    return dict(each.split(": ", 1) for each in done.stdout.splitlines())
