"""Llamas for the tests of requests: small ones with random weights, and SmolLM2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import random_gguf
from llamas import UBATCH, tiny

from yarn_gguf.run.llama import Llama


@pytest.fixture(scope="module")
def model_of(tmp_path_factory) -> Callable[[str], Path]:
    """Callable: architecture -> a random model of random_gguf.py. Never written to."""
    folder = tmp_path_factory.mktemp("models")

    def make(arch: str) -> Path:
        path = folder / f"{arch}.gguf"
        return path if path.exists() else getattr(random_gguf, arch)(path)

    return make


@pytest.fixture
def llama(model_of) -> Iterator[Llama]:
    with closing(tiny(model_of("llama"))) as llama:
        yield llama


@pytest.fixture(scope="module")
def smollm2(smollm2_q8) -> Iterator[Llama]:
    with closing(Llama(smollm2_q8, n_ctx=512, n_ubatch=UBATCH, n_threads=2, verbose=False)) as llama:
        yield llama
