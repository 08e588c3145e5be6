"""yarn-gguf convert: its options, its dry run and its output."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from yarn_gguf.cli import main
from yarn_gguf.disk.sizes import parse_decimal_size
from yarn_gguf.rope.read import read_model
from yarn_gguf.rope.scaling import RopeScaling


def test_the_command_writes_a_scaled_file(folder: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out.gguf"
    arguments = [
        str(folder),
        "-o",
        str(output),
        "--type",
        "q4_k_m",
        "--no-tokenizer",
        "--method",
        "yarn",
        "--factor",
        "4",
    ]
    assert main(["convert", *arguments, "--beta-fast", "16", "--original-context", "128"]) == 0
    assert read_model(output).scaling == RopeScaling("yarn", 4.0, 128, beta_fast=16.0)
    assert capsys.readouterr().out == f"{output}: {output.stat().st_size:,} bytes\n"


@pytest.mark.parametrize("split", [[], ["--split-max-size", "1M"]])
def test_a_dry_run_shows_what_would_be_written_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys, split: list[str]
) -> None:
    output = tmp_path / "out" / "model.gguf"
    output.parent.mkdir()
    arguments = ["convert", str(folder), "-o", str(output), "--type", "q4_k_m", "--no-tokenizer", *split]
    assert main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert list(output.parent.iterdir()) == []
    assert main(arguments) == 0
    written = list(output.parent.iterdir())
    assert f"{sum(path.stat().st_size for path in written):,} bytes in all" in said
    assert all(path.name in said for path in written)
    for path in written:
        for each in gguf.GGUFReader(path).tensors:
            (line,) = (line.split() for line in said.splitlines() if line.split()[:1] == [each.name])
            assert line[-2:] == [each.tensor_type.name, f"{each.n_bytes:,}"]


def test_an_option_without_its_factor_is_refused(folder: Path, tmp_path: Path, capsys) -> None:
    arguments = ["convert", str(folder), "-o", str(tmp_path / "out.gguf"), "--type", "q8_0"]
    assert main([*arguments, "--beta-fast", "16"]) == 1
    assert "needs --factor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"), [("2G", 2 * 10**9), ("500MB", 500 * 10**6), ("1000", 1000), ("64k", 64_000)]
)
def test_the_size_of_a_part_is_in_powers_of_1000(text: str, size: int) -> None:
    assert parse_decimal_size(text) == size


@pytest.mark.parametrize("text", ["G", "-3G", "1.5G", "24GiB", "24X", ""])
def test_a_bad_size_of_a_part_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "SRC", "-o", "out.gguf", "--type", "q8_0", f"--split-max-size={text}"])
    assert f"must be a number of bytes like 2G or 500M, got {text}" in capsys.readouterr().err
