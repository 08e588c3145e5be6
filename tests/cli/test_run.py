"""yarn-gguf run: its prompt, its options, and its end."""

from __future__ import annotations

import argparse
import os
import pty
import signal
import subprocess
import sys
import threading

import pytest
from libraries import ROOT

from yarn_gguf import DynamicScaling
from yarn_gguf.cli import run
from yarn_gguf.cli.options import running
from yarn_gguf.run.llama import Llama
from yarn_gguf.run.prompt import text_tokens


def command(*args: str, **kwargs) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "yarn_gguf", "run", *args]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, **kwargs)


def test_run_answers_a_prompt_from_an_argument_a_file_and_standard_input_alike(smollm2_q8, tmp_path):
    prompt = "Name three colours."
    (tmp_path / "prompt.txt").write_text(prompt)
    options = [str(smollm2_q8), "-n", "12"]
    answers = [
        command(*options, "-p", prompt),
        command(*options, "-f", str(tmp_path / "prompt.txt")),
        command(*options, "-", input=prompt),
    ]
    assert [answer.returncode for answer in answers] == [0, 0, 0], answers[-1].stderr
    assert len({answer.stdout for answer in answers}) == 1
    assert len(answers[0].stdout.split()) > 2
    assert answers[0].stderr == ""


def test_run_warns_of_a_context_beyond_that_of_the_file(smollm2_q8):
    answer = command(str(smollm2_q8), "-p", "Hello", "-n", "2", "-c", "9000")
    assert answer.returncode == 0
    assert "is made for 8192" in answer.stderr.replace("\n", " ")


def test_run_by_request_reserves_prompt_and_answer(smollm2_q8, monkeypatch, capsys):
    reserved = []
    reserve = Llama.reserve
    monkeypatch.setattr(Llama, "reserve", lambda llama, n: (reserved.append(n), reserve(llama, n)))
    parser = argparse.ArgumentParser()
    run.configure(parser)
    prompt = ["-p", "Tell me of a king and his three sons.", "--raw", "-n", "5"]
    run.main(parser.parse_args([str(smollm2_q8), *prompt, "--dynamic", "request"]))
    assert capsys.readouterr().out
    assert set(reserved) == {len(text_tokens(smollm2_q8, prompt[1])) + 5}


@pytest.mark.parametrize(
    ("options", "scaling"),
    [
        ((), None),
        (("--rope-scaling", "linear"), "linear"),
        (("--dynamic",), DynamicScaling.of("yarn", policy="growth")),
        (("--dynamic", "exact", "--rope-scaling", "ntk"), DynamicScaling.of("ntk", policy="exact")),
    ],
)
def test_run_scales_as_its_options_say(options, scaling):
    parser = argparse.ArgumentParser()
    run.configure(parser)
    args = parser.parse_args(["model.gguf", "-p", "hi", *options])
    assert running.requested_scaling(args, running.Earlier()) == scaling


def test_run_refuses_a_prompt_that_does_not_fit(smollm2_q8):
    answer = command(str(smollm2_q8), "-p", "Hello " * 100, "-c", "64")
    assert answer.returncode == 1
    assert "--ctx-size 64 cannot hold" in answer.stderr


def refused(message: str, *args: str, **kwargs) -> None:
    """Check that the command fails with `message` on standard error and without a traceback."""
    answer = command(*args, **kwargs)
    assert answer.returncode in (1, 2)
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_prompt_that_is_not_text_is_refused(smollm2_q8, tmp_path):
    (tmp_path / "prompt.bin").write_bytes(b"\xff\xfe")
    refused("prompt.bin is no UTF-8 text (byte 0)", str(smollm2_q8), "-f", str(tmp_path / "prompt.bin"))
    refused("standard input is empty: give a text", str(smollm2_q8), "--raw", "-", input="")


@pytest.mark.parametrize(
    "option", ["-n 0", "-n -1", "-c 0", "--temp -1", "--temp nan", "--rope-scaling magic"]
)
def test_an_option_that_makes_no_sense_is_refused(smollm2_q8, option):
    refused(
        option.split()[0].replace("-n", "-n/--max-tokens").replace("-c", "-c/--ctx-size"),
        str(smollm2_q8),
        "-p",
        "hi",
        *option.split(),
    )


def test_a_file_that_is_no_gguf_is_refused_by_run(tmp_path):
    (tmp_path / "model.gguf").write_text("text")
    refused("model.gguf: ", str(tmp_path / "model.gguf"), "-p", "hi")


def test_run_ends_quietly_when_its_output_is_closed(smollm2_q8):
    line = [sys.executable, "-m", "yarn_gguf", "run", str(smollm2_q8), "-p", "Tell a story.", "-n", "60"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    process.stdout.read(3)
    process.stdout.close()
    assert process.wait(timeout=100) == 1
    assert process.stderr.read() == b""


def test_ctrl_c_stops_run_in_a_terminal_cleanly(smollm2_q8, tmp_path):
    """Ctrl-C comes while the prompt is read and the progress bar is shown."""
    (tmp_path / "long.txt").write_text((ROOT / "examples" / "mansfield-park.txt").read_text()[:30000])
    master, slave = pty.openpty()
    line = [sys.executable, "-m", "yarn_gguf", "run", str(smollm2_q8), "-f", str(tmp_path / "long.txt")]
    process = subprocess.Popen(
        line, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, preexec_fn=_listen_to_sigint
    )
    os.close(slave)
    hanging = threading.Timer(180, process.kill)
    hanging.start()
    shown = b""
    while b"tokens/s" not in shown:
        shown += os.read(master, 4096)
    process.send_signal(signal.SIGINT)
    while chunk := _read(master):  # a program whose output nobody reads would wait
        shown += chunk
    assert process.wait() == 130
    hanging.cancel()
    os.close(master)
    assert b"reading" in shown
    assert b"Traceback" not in shown


def _listen_to_sigint() -> None:
    """Undo an ignored SIGINT, which a process in the background passes to its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _read(master: int) -> bytes:
    try:
        return os.read(master, 4096)
    except OSError:  # the other end is closed
        return b""
