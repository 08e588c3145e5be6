"""No failure of the native library that can be caught before it aborts ends the process."""

from __future__ import annotations

from pathlib import Path

import pytest
import random_gguf


@pytest.fixture(scope="module")
def folder(tmp_path_factory, smollm2_path) -> Path:
    """Of tiny models: "text" has a real vocabulary, "tokens" has none, "encoder" is not causal."""
    folder = tmp_path_factory.mktemp("hostile")
    random_gguf.llama(folder / "text.gguf", smollm2_path)
    random_gguf.llama(folder / "tokens.gguf")
    random_gguf.bert(folder / "encoder.gguf", smollm2_path)
    return folder
