"""Models for the tests of yarn-gguf chat, a path for a session, and a document."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_models import write_chat_model
from chats import TEXT


@pytest.fixture(scope="session")
def chat_model(smollm2_path, tmp_path_factory) -> Path:
    """A model of one layer with a context of 8192 tokens. Never written to."""
    return write_chat_model(tmp_path_factory.mktemp("chat") / "tiny.gguf", smollm2_path, layers=1)


@pytest.fixture(scope="session")
def short_chat_model(smollm2_path, tmp_path_factory) -> Path:
    """A model of one layer with a context of 1024 tokens. Never written to."""
    path = tmp_path_factory.mktemp("chat") / "a small.gguf"
    return write_chat_model(path, smollm2_path, layers=1, context=1024)


@pytest.fixture
def session(tmp_path: Path) -> Path:
    return tmp_path / "a chat.session"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    """About 1500 tokens."""
    path = tmp_path / "novel.txt"
    path.write_text(TEXT[:6000], encoding="utf-8")
    return path
