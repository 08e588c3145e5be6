"""Outputs of the commands: never in the place of a FIFO, or of a file that the command reads."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hf_checkpoints import save_checkpoint
from libraries import ROOT
from tiny_gguf import write_tiny

from yarn_gguf.cli import main

RESULT = {
    "kind": "passkey",
    "command": "yarn-gguf eval passkey x",
    "version": "1",
    "model": {"file": "m.gguf", "architecture": "llama", "original_context": 8192, "rope_theta": 1e5},
    "rows": [{"scaling": "none", "length": 4096, "depth": 0.5, "found": 4, "trials": 4}],
}
TEXT = "It was the best of times."

# the arguments of every command that writes a file, and the suffix of OUT
COMMANDS = {
    "extend": ("extend IN/model.gguf -o OUT --force --factor 4", ".gguf"),
    "extend --from-hf": ("extend IN/model.gguf -o OUT --force --from-hf IN/hf", ".gguf"),
    "convert": ("convert IN/hf -o OUT --force --type f16 --no-tokenizer", ".gguf"),
    "advise": ("advise IN/model.gguf -c 16384 -f IN/text.txt -o OUT --force", ".gguf"),
    "advise --csv": ("advise IN/model.gguf -c 16384 -f IN/text.txt --csv OUT", ".csv"),
    "perplexity": ("eval perplexity IN/model.gguf -c 512 -f IN/text.txt --json OUT", ".json"),
    "passkey": ("eval passkey IN/model.gguf --lengths 512 --plot OUT", ".png"),
    "tasks": ("eval tasks IN/model.gguf --requests IN/requests.jsonl --csv OUT", ".csv"),
    "report": ("eval report IN/result.json -o OUT", ".html"),
    "inspect": ("inspect IN/model.gguf --plot OUT", ".png"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny(folder / "model.gguf", rope__dimension_count=64)
    (folder / "text.txt").write_text(TEXT)
    (folder / "requests.jsonl").write_text("{}")
    (folder / "result.json").write_text(json.dumps(RESULT))
    small = {"num_hidden_layers": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}
    save_checkpoint(folder / "hf", head_dim=64, **small)
    return folder


@pytest.fixture
def inputs(made: Path, tmp_path: Path) -> Path:
    """The files that the commands read, for one test."""
    return Path(shutil.copytree(made, tmp_path / "IN"))


def run(command: str, inputs: Path, output: Path) -> int:
    words = COMMANDS[command][0].split()
    return main([str(output) if word == "OUT" else word.replace("IN", str(inputs), 1) for word in words])


def contents(folder: Path) -> dict[Path, bytes]:
    return {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_fifo_is_not_replaced(command: str, inputs: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / f"fifo{COMMANDS[command][1]}"
    os.mkfifo(output)
    assert run(command, inputs, output) == 1
    assert f"{output} is not a regular file: name another" in capsys.readouterr().err
    assert stat.S_ISFIFO(output.stat().st_mode)


def test_the_example_replaces_no_fifo(tmp_path: Path) -> None:
    output = tmp_path / "fifo.gguf"
    os.mkfifo(output)
    command = [sys.executable, str(ROOT / "examples" / "smollm2.py"), str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and f"{output} is not a regular file" in done.stderr
    assert stat.S_ISFIFO(output.stat().st_mode)


def its_inputs(command: str, inputs: Path) -> list[Path]:
    words = COMMANDS[command][0].split()
    given = [Path(word.replace("IN", str(inputs), 1)) for word in words if word.startswith("IN/")]
    return [file for each in given for file in (each, *each.rglob("*")) if file.is_file()]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_input_is_not_replaced(command: str, inputs: Path, tmp_path: Path, capsys) -> None:
    """The output is a link to the input: so its name has the suffix that the command wants."""
    before, link = contents(inputs), tmp_path / f"link{COMMANDS[command][1]}"
    for each in its_inputs(command, inputs):
        is_unread = command == "extend --from-hf" and each.name not in ("model.gguf", "config.json")
        if is_unread:
            continue
        link.symlink_to(each)
        assert run(command, inputs, link) == 1, each
        said = capsys.readouterr().err
        assert "is also an input: name another file" in said or "output and input are the same file" in said
        assert contents(inputs) == before
        link.unlink()


def test_the_pictures_of_a_report_replace_no_fifo_and_no_input(inputs: Path, tmp_path: Path, capsys) -> None:
    pictures, page = tmp_path / "pictures", tmp_path / "page.html"
    pictures.mkdir()
    arguments = ["eval", "report", str(inputs / "result.json"), "-o", str(page), "--pictures", str(pictures)]
    make: list[tuple[Callable[[Path], None], str]] = [
        (os.mkfifo, "is not a regular file: name another"),
        (lambda path: path.symlink_to(inputs / "result.json"), "is also an input: name another file"),
    ]
    for place, message in make:
        picture = pictures / "1-passkey.png"
        place(picture)
        assert main(arguments) == 1
        assert f"{picture} {message}" in capsys.readouterr().err
        assert stat.S_ISFIFO(picture.stat().st_mode) or picture.is_symlink()
        picture.unlink()
    assert json.loads((inputs / "result.json").read_text()) == RESULT
