"""A Llama with random weights, whose answers are random."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from chat_models import write_chat_model

from yarn_gguf.run.llama import Llama


@pytest.fixture(scope="session")
def llama(smollm2_path, tmp_path_factory) -> Iterator[Llama]:
    path = write_chat_model(tmp_path_factory.mktemp("models") / "chat.gguf", smollm2_path)
    with closing(Llama(path, n_ctx=2048, n_threads=1, verbose=False)) as llama:
        yield llama
