"""A small model file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_gguf import write_tiny


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A fresh file of write_tiny."""
    return write_tiny(tmp_path / "tiny.gguf")
