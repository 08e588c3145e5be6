"""The command line: exit status, output, and that it starts without loading anything heavy."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prompt_toolkit.document import Document
from rich.console import Console
from tiny_gguf import write_tiny

import yarn_gguf
from yarn_gguf.cli import COMMANDS, main
from yarn_gguf.cli.screen.progress import labelled_progress
from yarn_gguf.cli.screen.terminal import _completer
from yarn_gguf.model_file.inspect import inspect_file
from yarn_gguf.model_file.plot import plot_report
from yarn_gguf.rope.dynamic import DynamicScaling
from yarn_gguf.rope.read import read_model
from yarn_gguf.rope.scaling import RopeScaling


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf")


def test_the_version_is_printed(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"yarn-gguf {yarn_gguf.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert f"yarn-gguf {name}" in capsys.readouterr().out


def test_starting_loads_nothing_heavy() -> None:
    command = "import sys, yarn_gguf.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "matplotlib", "llama_cpp", "gguf"} & set(done.stdout.split())


def test_extend_writes_a_new_file_and_reports_it(tiny: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out.gguf"
    assert main(["extend", str(tiny), "-o", str(output), "--method", "yarn", "--factor", "4"]) == 0
    assert read_model(output).scaling == RopeScaling("yarn", 4.0, 8192)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"{output}: written, {output.stat().st_size:,} bytes"
    assert rest == [
        "rope scaling: yarn, factor 4, from 8,192 tokens; temperature 1.1386",
        "context: 32,768 tokens",
    ]


def test_extend_in_place_says_how_it_wrote(tiny: Path, capsys) -> None:
    arguments = ["extend", str(tiny), "--in-place", "--factor"]
    assert [main([*arguments, factor]) for factor in ("4", "2", "2")] == [0, 0, 0]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(tiny))]
    assert "written" in lines[0]
    assert "changed in place" in lines[1]
    assert "nothing was written" in lines[2]


def test_extend_takes_the_scaling_of_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192, "beta_fast": 16}
    config = {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "max_position_embeddings": 32768,
        "rope_theta": 100000.0,
        "rope_scaling": yarn,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["extend", str(tiny), "--in-place", "--from-hf", str(tmp_path)]) == 0
    assert read_model(tiny).scaling == RopeScaling("yarn", 4.0, 8192, beta_fast=16.0)


@pytest.mark.parametrize(("option", "policy"), [([], "growth"), (["--dynamic", "request"], "request")])
def test_extend_takes_the_dynamic_scaling_of_a_checkpoint(
    tiny: Path, tmp_path: Path, option: list[str], policy: str
) -> None:
    config = {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rope_scaling": {"type": "dynamic", "factor": 2.5},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["extend", str(tiny), "--in-place", "--from-hf", str(tmp_path), *option]) == 0
    model = read_model(tiny)
    assert model.dynamic == DynamicScaling.of(
        "ntk", policy=policy, original_max_position_embeddings=8192, ntk_factor=2.5
    )
    assert (model.scaling, model.context_length) == (RopeScaling("ntk", 2.5, 8192), 20480)
    assert main(["extend", str(tiny), "--in-place", "--factor", "4", "--dynamic"]) == 0
    assert read_model(tiny).dynamic == DynamicScaling.of(
        "yarn", policy="growth", original_max_position_embeddings=8192
    )


@pytest.mark.parametrize("values", [{"rope_theta": 1e6}, {"partial_rotary_factor": 0.5}])
def test_a_checkpoint_of_another_model_is_refused(
    tiny: Path, tmp_path: Path, capsys, values: dict[str, float]
) -> None:
    config = {"hidden_size": 128, "num_attention_heads": 2, "max_position_embeddings": 512, "rope_theta": 1e5}
    config |= values
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = tiny.read_bytes()
    assert main(["extend", str(tiny), "--in-place", "--from-hf", str(tmp_path)]) == 1
    assert "is of another model than" in capsys.readouterr().err
    assert tiny.read_bytes() == before


def test_every_option_of_extend_arrives(tiny: Path) -> None:
    options = "--factor 2 --original-context 4096 --beta-fast 24 --beta-slow 2 --attention-factor 1.5"
    assert main(["extend", str(tiny), "--in-place", *options.split()]) == 0
    assert read_model(tiny).scaling == RopeScaling("yarn", 2.0, 4096, 24.0, 2.0, attention_factor=1.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "needs --factor"),
        ("--factor 0.5", "factor must be a number >= 1, got 0.5"),
        ("--factor nan", "factor must be a number >= 1, got nan"),
        ("--factor 4 --method llama3", "low_freq_factor must be a number > 0"),
        ("--factor 4 --original-context 0", "original_max_position_embeddings must be"),
    ],
)
def test_a_refusal_is_one_line_and_writes_nothing(tiny: Path, capsys, options: str, message: str) -> None:
    before = tiny.read_bytes(), tiny.stat().st_mtime_ns
    assert main(["extend", str(tiny), "--in-place", *options.split()]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("yarn-gguf: ")
    assert message in err
    assert err.count("\n") == 1
    assert (tiny.read_bytes(), tiny.stat().st_mtime_ns) == before


@pytest.mark.parametrize("command", [["inspect"], ["extend", "--in-place", "--factor", "2"]])
def test_a_missing_file_is_one_line(tmp_path: Path, capsys, command: list[str]) -> None:
    assert main([command[0], str(tmp_path / "none.gguf"), *command[1:]]) == 1
    err = capsys.readouterr().err
    assert "none.gguf" in err
    assert err.count("\n") == 1


def test_extend_needs_to_know_where_to_write(tiny: Path) -> None:
    for target in ([], ["--in-place", "-o", "x.gguf"]):
        with pytest.raises(SystemExit) as caught:
            main(["extend", str(tiny), "--factor", "2", *target])
        assert caught.value.code == 2


def test_an_interrupt_exits_with_130(tiny: Path, monkeypatch) -> None:
    def interrupt(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS["inspect"], "main", interrupt)
    assert main(["inspect", str(tiny)]) == 130


def test_a_termination_removes_the_temporary_file(tiny: Path) -> None:
    command = (
        "import os, signal, sys; from yarn_gguf.cli import main;"
        "os.fsync = lambda descriptor: signal.raise_signal(signal.SIGTERM); main()"
    )
    arguments = ["extend", str(tiny), "--in-place", "--factor", "2"]
    done = subprocess.run([sys.executable, "-c", command, *arguments], capture_output=True)
    assert done.returncode == 143
    assert list(tiny.parent.iterdir()) == [tiny]


def test_inspect_shows_every_dimension(tiny: Path, capsys) -> None:
    main(["extend", str(tiny), "--in-place", "--factor", "4"])
    capsys.readouterr()
    assert main(["inspect", str(tiny)]) == 0
    out = capsys.readouterr().out
    assert "usable context       32,768 tokens" in out
    assert "temperature          1.13863" in out
    assert "unpatched llama.cpp  scales as the file says" in out
    counts = [out.count(f" {treatment}") for treatment in ("extrapolated", "blended", "interpolated")]
    assert counts == [11, 9, 12]


def test_inspect_prints_json(tiny: Path, capsys) -> None:
    main(["extend", str(tiny), "--in-place", "--factor", "4"])
    capsys.readouterr()
    assert main(["inspect", str(tiny), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["scaling"] == {
        "method": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert report["usable_context"] == 32768
    assert len(report["dimensions"]) == 32
    assert report["dimensions"][31]["treatment"] == "interpolated"


def test_inspect_names_the_fault_of_an_unsound_file(tmp_path: Path, capsys) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", rope__scaling__type="ntk")
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "unsound" in out
    assert "ends the whole process" in out


def test_inspect_draws_a_plot(tiny: Path, tmp_path: Path) -> None:
    assert main(["inspect", str(tiny), "--plot", str(tmp_path / "plot.png")]) == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_with_an_unknown_ending_is_refused_at_once(tiny: Path, tmp_path, capsys) -> None:
    assert main(["inspect", str(tiny), "--plot", str(tmp_path / "plot.txt")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "plot.txt: '.txt' is no kind of picture: one of" in err
    with pytest.raises(yarn_gguf.YarnGGUFError, match="is no kind of picture"):
        plot_report(inspect_file(tiny), tmp_path / "plot")
    assert [*tmp_path.iterdir()] == [tiny]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "eval perplexity m.gguf -f a.txt -c 16k",
            "argument -c/--context: must be a whole number > 0, got 16k",
        ),
        ("eval passkey m.gguf --lengths abc", "argument --lengths: must be a whole number > 0, got abc"),
        ("eval passkey m.gguf --lengths 300 -t 0", "-t/--threads: must be a whole number > 0, got 0"),
        ("run m.gguf -p x -t 0", "-t/--threads: must be a whole number > 0, got 0"),
        ("run m.gguf -p x --top-p often", "argument --top-p: must be a number from 0 to 1, got often"),
    ],
)
def test_a_bad_number_is_named_with_its_option(capsys, command: str, message: str) -> None:
    with pytest.raises(SystemExit):
        main(command.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    ["inspect {}", "extend {} --in-place --factor 2", "run {} -p x", "chat {}", "plan {} -c 300"],
)
def test_a_missing_file_is_named_by_every_command(tmp_path: Path, capsys, command: str) -> None:
    path = tmp_path / "none.gguf"
    assert main(command.format(path).split()) == 1
    assert capsys.readouterr().err == f"yarn-gguf: {path}: No such file or directory\n"


def test_an_empty_prompt_file_is_refused(tiny: Path, tmp_path: Path, capsys) -> None:
    text = tmp_path / "empty.txt"
    text.write_text("\n")
    assert main(["run", str(tiny), "-f", str(text)]) == 1
    assert f"{text} is empty: give a text" in capsys.readouterr().err


def test_progress_leaves_room_for_the_echo_of_ctrl_c() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80)
    with labelled_progress(console, "prompts") as label:
        label("none")(2, 3)
    assert "2/3" in shown.getvalue()
    whole = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    assert 60 < max(map(len, re.split(r"[\r\n]", whole))) <= 77


def test_tab_ends_a_folder_with_a_slash(tmp_path: Path) -> None:
    (tmp_path / "nu_sub").mkdir()
    (tmp_path / "nu_sub" / "a.txt").touch()
    completer = _completer(["/load"], ["/load"])

    def completed(text: str) -> list[str]:
        return [text + each.text for each in completer.get_completions(Document(f"/load {text}"), None)]

    assert completed(f"{tmp_path}/nu_s") == [f"{tmp_path}/nu_sub/"]
    assert completed(f"{tmp_path}/nu_sub/") == [f"{tmp_path}/nu_sub/a.txt"]
