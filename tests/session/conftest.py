"""Models of the tests of sessions, and a place for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import random_gguf
from conformance import ROWS, make_model
from hf_checkpoints import convert_weights

from yarn_gguf import RopeScaling


@pytest.fixture(scope="session")
def model_of(tmp_path_factory) -> Callable[[str], Path]:
    """A tiny random model of an architecture, never to be written to."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("model")
            made[name] = folder / f"{name}.gguf"
            if name == "lfm2":
                random_gguf.lfm2(made[name])
            else:
                row = replace(ROWS[name], config=ROWS[name].config | {"head_dim": 64})
                make_model(row if name == "llama" else ROWS[name], RopeScaling()).save_pretrained(folder)
                convert_weights(folder, made[name], type="f32", scaling=RopeScaling())
        return made[name]

    return make


@pytest.fixture
def model(model_of) -> Path:
    return model_of("llama")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a [long] book.session"
