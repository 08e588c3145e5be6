"""A pytest plugin for llama-cpp-python's own tests: our class replaces its own, local files its downloads.

Environment variables:
    UPSTREAM_MODELS     JSON: file name -> path of the model that replaces it
    UPSTREAM_LEFT_OUT   JSON: names of tests that are not run
    UPSTREAM_COUNT      path of a file, to which the number of our Llamas is written
"""

import json
import os
from pathlib import Path

import huggingface_hub
import pytest

from yarn_gguf.run.llama import Llama, llama_cpp

made = 0


class Counted(Llama):
    """Our Llama, counted."""

    def __init__(self, *args, **kwargs) -> None:
        global made
        made += 1
        super().__init__(*args, **kwargs)


def stand_in(repo_id: str, filename: str, **_: object) -> str:
    """Return the path of the model that replaces a download."""
    models = json.loads(os.environ["UPSTREAM_MODELS"])
    if filename not in models:
        pytest.fail(f"UPSTREAM_MODELS has no model in the place of {filename}")
    return models[filename]


llama_cpp.Llama = Counted
huggingface_hub.hf_hub_download = stand_in


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    left_out = json.loads(os.environ["UPSTREAM_LEFT_OUT"])
    items[:] = [each for each in items if each.name not in left_out]


def pytest_sessionfinish() -> None:
    Path(os.environ["UPSTREAM_COUNT"]).write_text(str(made))
