"""A pytest plugin for llama-cpp-python's own tests: our class in the place of its own, and no downloads.

UPSTREAM_MODELS: JSON, file name -> the file that stands for it. UPSTREAM_LEFT_OUT: JSON, names
of tests. UPSTREAM_COUNT: a file that gets the number of objects of our class that were made.
"""

import json
import os
from pathlib import Path

import huggingface_hub
import pytest

from yarn_gguf.run.llama import Llama, llama_cpp

made = 0


class Counted(Llama):
    """One of ours."""

    def __init__(self, *args, **kwargs) -> None:
        global made
        made += 1
        super().__init__(*args, **kwargs)


def stand_in(repo_id: str, filename: str, **_: object) -> str:
    models = json.loads(os.environ["UPSTREAM_MODELS"])
    if filename not in models:
        pytest.fail(f"no model stands for {filename}")
    return models[filename]


llama_cpp.Llama = Counted
huggingface_hub.hf_hub_download = stand_in


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    left_out = json.loads(os.environ["UPSTREAM_LEFT_OUT"])
    items[:] = [each for each in items if each.name not in left_out]


def pytest_sessionfinish() -> None:
    Path(os.environ["UPSTREAM_COUNT"]).write_text(str(made))
