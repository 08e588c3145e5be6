"""Model files: a small one, some of the conformance matrix, and a large one without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sparse_gguf import llama_8b
from tiny_gguf import write_tiny

from yarn_gguf import RopeScaling


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Return a fresh file of write_tiny."""
    return write_tiny(tmp_path / "tiny.gguf")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Return a function that makes a float16 GGUF file from the name of a row of the conformance matrix."""
    import transformers
    from conformance import ROWS, make_model
    from hf_checkpoints import convert_weights

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    made = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("checkpoint")
            make_model(ROWS[name], RopeScaling()).save_pretrained(folder)
            convert_weights(folder, folder / "model.gguf", type="f16", scaling=RopeScaling())
            made[name] = folder / "model.gguf"
        return made[name]

    yield make


@pytest.fixture(scope="session")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sparse file of Llama 3 8B in Q4_0: it has the sizes, but no weights."""
    return llama_8b(tmp_path_factory.mktemp("sparse") / "llama-3-8b.gguf")
