"""Models for the tests of dynamic scaling, and a text of random tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import transformers
from conformance import ROWS, make_model
from dynamics import L, make_room_for_sequences
from hf_checkpoints import convert_weights

from yarn_gguf import RopeScaling


@pytest.fixture(scope="session")
def tokens() -> list[int]:
    return np.random.default_rng(1).integers(3, 256, 8 * L).tolist()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Iterator:
    """Callable: (row's name, layers) -> (transformers model, GGUF file), unscaled."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    made = {}

    def make(name: str, layers: int = 2) -> tuple[transformers.PreTrainedModel, Path]:
        if (name, layers) not in made:
            row = ROWS[name]
            if layers == 1:
                # the library transforms quantized K of heads of 64 and more dimensions
                wide = {"head_dim": 64} if name == "qwen3" else {}
                row = replace(row, config=row.config | {"num_hidden_layers": 1} | wide)
            model = make_model(row, RopeScaling())
            folder = tmp_path_factory.mktemp("checkpoint")
            model.save_pretrained(folder)
            convert_weights(folder, folder / "model.gguf", type="f32", scaling=RopeScaling())
            made[name, layers] = model, folder / "model.gguf"
        return made[name, layers]

    return make


@pytest.fixture(params=[True, False], ids=["one buffer", "a buffer each"])
def two_sequences(request, monkeypatch) -> None:
    make_room_for_sequences(monkeypatch, 2, unified=request.param)
