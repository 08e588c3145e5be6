"""yarn-gguf chat without a terminal: lines of a pipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from chats import QUICK, piped, run_command
from terminal import session_text


def test_lines_of_a_pipe_are_answered_one_by_one(chat_model: Path, session: Path, document: Path) -> None:
    done = piped(f"Who are you?\n\n/load {document}\nWhy?", chat_model, *QUICK, "--session", session)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.decode().splitlines()
    assert [len(answer.split()) for answer in answers] == [12, 12]
    assert b"\x1b" not in done.stdout + done.stderr
    text = session_text(chat_model, session)
    for answer in answers:
        assert f"<|im_start|>assistant\n{answer}" in text
    again = piped("And then?", chat_model, *QUICK, "--session", session)
    assert session_text(chat_model, session).startswith(text)
    assert again.returncode == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/load none.txt\nWhy?", "none.txt: No such file or directory"),
        ("/lode x\nWhy?", "there is no command /lode: did you mean /load?"),
        (b"\xff\nWhy?", "line 1 of standard input is no UTF-8 text"),
        ("word " * 600, "the context holds 512. Leave, and come back with -c 2048."),
    ],
)
def test_an_error_in_a_pipe_ends_it(chat_model: Path, text: str | bytes, message: str) -> None:
    done = piped(text, chat_model, *QUICK, "-c", "512")
    assert done.returncode == 1
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


@pytest.mark.parametrize("options", [("--raw",), ("--session",)])
def test_a_system_prompt_that_comes_too_late_is_refused_by_run(
    chat_model: Path, session: Path, options
) -> None:
    if "--session" in options:
        options = ("--session", session)
        assert run_command(chat_model, *QUICK, *options, "-p", "Who are you?").returncode == 0
    done = run_command(chat_model, *QUICK, *options, "-p", "Why?", "--system", "Be brief.")
    assert done.returncode == 1
    assert "--system is the first message of a chat" in done.stderr
