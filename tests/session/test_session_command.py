"""Sessions: yarn-gguf run --session."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from libraries import ROOT
from sessions import saved

from yarn_gguf.cli import main
from yarn_gguf.cli.options import running
from yarn_gguf.run.chat_template import ChatTemplate
from yarn_gguf.run.llama import Llama
from yarn_gguf.session.file import read_contents


def command(*args: object) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "yarn_gguf", "run", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)


def test_run_goes_on_in_a_new_process_where_it_ended(smollm2_q8: Path, path: Path) -> None:
    questions = ["My name is Bob. Name three colours.", "Which is the first?", "What is my name?"]
    options = ["--session", path, "-n", "16", "-t", "2"]
    answers = [command(smollm2_q8, "-p", question, *options) for question in questions]
    assert [answer.returncode for answer in answers] == [0, 0, 0], answers[0].stderr
    contents = read_contents(path)
    with closing(Llama(smollm2_q8, n_ctx=1024, n_threads=2, flash_attn=True, verbose=False)) as llama:
        text = llama.detokenize(contents.tokens.tolist(), special=True).decode()
    for question, answer in zip(questions, answers, strict=True):
        turn = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer.stdout.rstrip()}"
        assert turn in text
    assert text.count("<|im_start|>system") == 1
    assert text.count("<|im_end|>\n<|im_start|>user") == 3


def test_run_reads_nothing_for_a_session_that_it_cannot_save(
    smollm2_q8: Path, path: Path, monkeypatch, capsys
) -> None:
    saved(smollm2_q8, path, [1, 2, 3], n_ctx=256)
    monkeypatch.setattr(os, "access", lambda file, mode: file != path)
    monkeypatch.setattr(running, "load", None)  # must not be called
    assert main(["run", str(smollm2_q8), "--session", str(path), "-p", "And then?"]) == 1
    assert f"{path} cannot be written to: check its rights" in capsys.readouterr().err


def test_rebuild_without_a_session_is_refused(smollm2_q8: Path) -> None:
    answer = command(smollm2_q8, "-p", "hi", "--rebuild")
    assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
    assert "give --session FILE" in answer.stderr


def test_a_template_that_leaves_out_answers_is_refused(
    smollm2_q8: Path, path: Path, monkeypatch, capsys
) -> None:
    saved(smollm2_q8, path, [1, 2, 3], n_ctx=256)
    monkeypatch.setattr(ChatTemplate, "render", lambda *_, **__: "no turns at all")
    assert main(["run", str(smollm2_q8), "--session", str(path), "-p", "And then?"]) == 1
    assert re.search("leaves out answers.*use --raw", capsys.readouterr().err)


def test_run_names_the_setting_that_differs_and_rebuilds(smollm2_q8: Path, path: Path) -> None:
    options = ["--session", path, "-n", "4", "-t", "2", "-p", "Hello."]
    assert command(smollm2_q8, *options).returncode == 0
    other = command(smollm2_q8, *options, "--dynamic")
    assert other.returncode == 1
    assert "rope scaling as the file says, and not dynamic-yarn" in other.stderr
    assert "Traceback" not in other.stderr
    rebuilt = command(smollm2_q8, *options, "--dynamic", "--rebuild")
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert read_contents(path).identity["rope scaling"]["policy"] == "growth"
    too_small = command(smollm2_q8, *options, "--dynamic", "-c", "32")
    assert too_small.returncode == 1
    assert "--ctx-size 32 cannot hold" in too_small.stderr
    shutil.copy(smollm2_q8, path)
    assert "no file of a session" in command(smollm2_q8, *options).stderr
