"""Checkpoints of a tiny Llama that the tests of conversion share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hf_checkpoints import save_checkpoint
from lora_adapters import save_base


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in one safetensors file. Tests must not write to it."""
    return save_checkpoint(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, for one test."""
    return Path(shutil.copytree(saved, tmp_path / "hf"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny Llama that adapters change."""
    save_base(tmp_path / "base")
    return tmp_path / "base"
