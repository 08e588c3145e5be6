"""Models for the tests of sessions and conversations, and a path for a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import random_gguf
from chat_models import write_chat_model
from conformance import ROWS, make_model
from hf_checkpoints import convert_weights

from yarn_gguf import RopeScaling
from yarn_gguf.run.cached_text import CachedText


@pytest.fixture(scope="session")
def model_of(tmp_path_factory) -> Callable[[str], Path]:
    """Callable: architecture -> a tiny random model. Never written to."""
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


@pytest.fixture(scope="session")
def chat_model_of(smollm2_path, tmp_path_factory) -> Callable[..., Path]:
    """Callable: options of write_chat_model -> a tiny random model that chats. Never written to."""
    made: dict[str, Path] = {}

    def make(**options) -> Path:
        key = str(options)
        if key not in made:
            folder = tmp_path_factory.mktemp("chat")
            made[key] = write_chat_model(folder / "model.gguf", smollm2_path, **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny(chat_model_of) -> Path:
    """The plain one of these: attention alone, SmolLM2's tokenizer and template."""
    return chat_model_of()


@pytest.fixture
def read_tokens(monkeypatch) -> list[int]:
    """A list of all tokens that any Llama reads, in their order."""
    tokens, extend = [], CachedText.extend

    def noting(text: CachedText, more: list[int], *drafts: int) -> None:
        extend(text, more, *drafts)
        tokens.extend(more)

    monkeypatch.setattr(CachedText, "extend", noting)
    return tokens
