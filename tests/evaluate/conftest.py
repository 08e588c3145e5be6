"""The models and the requests that the tests of evaluations share."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from questions import request_lines, write_requests

from yarn_gguf import Llama


@pytest.fixture(scope="module")
def exact_llama(smollm2_f32):
    with closing(Llama(smollm2_f32, n_ctx=512, type_k=0, type_v=0, verbose=False)) as llama:
        yield llama


@pytest.fixture(scope="module")
def fast_llama(smollm2_q8):
    with closing(Llama(smollm2_q8, n_ctx=512, n_batch=128, flash_attn=True, verbose=False)) as llama:
        yield llama


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return write_requests(tmp_path / "tiny.jsonl.gz", request_lines())
