"""yarn-gguf chat: its options, and the context without -c."""

from __future__ import annotations

import argparse
from pathlib import Path

from yarn_gguf.cli import chat, run
from yarn_gguf.cli.options import model as model_options
from yarn_gguf.model_file import plan


def options(model: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    chat.configure(parser)
    return parser.parse_args([str(model), *more])


def test_the_default_context_is_the_models_as_far_as_it_fits(chat_model: Path, monkeypatch) -> None:
    assert chat.default_context(options(chat_model)) == 8192
    assert chat.default_context(options(chat_model, "--dynamic")) == 4 * 8192
    fitting = plan.plan(chat_model, 20000, gpu_layers=0, kv_types=("f16",), swa_full=True).layouts[0]
    set_memory(monkeypatch, plan.RESERVE + fitting.use.ram)
    assert 19800 < chat.default_context(options(chat_model, "--dynamic")) < 20480
    set_memory(monkeypatch, plan.RESERVE)
    assert chat.default_context(options(chat_model, "--dynamic")) == 8192  # even if it does not fit


def set_memory(monkeypatch, ram: int) -> None:
    for place in ("native.memory", "model_file.plan"):
        monkeypatch.setattr(f"yarn_gguf.{place}.machine_memory", lambda: (ram, 0))


def test_run_and_chat_take_the_same_options_of_a_model() -> None:
    def names(command) -> set[str]:
        parser = argparse.ArgumentParser()
        command.configure(parser)
        return {option for action in parser._actions for option in action.option_strings}

    shared = argparse.ArgumentParser()
    model_options.configure(shared, context="", temp=0.0, seed=0)
    options = {option for action in shared._actions for option in action.option_strings}
    assert options | {"-n"} <= names(run) & names(chat)
    assert {"-c", "--temp", "--top-p", "--min-p", "--session", "--rebuild", "--system"} <= options
