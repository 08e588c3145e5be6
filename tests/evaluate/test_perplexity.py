"""eval perplexity: its options, its rows, its files, and sweeps."""

from __future__ import annotations

import argparse
import csv
import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest
from libraries import PROSE

from yarn_gguf import RopeScaling, RopeScalingError
from yarn_gguf.cli import main
from yarn_gguf.cli.evaluate.perplexity import _quarters
from yarn_gguf.cli.options import evaluation as common
from yarn_gguf.evaluate.compare import Cell
from yarn_gguf.evaluate.reading.losses import token_losses
from yarn_gguf.evaluate.sweep import Sweep, parse_sweep
from yarn_gguf.rope.names import parse_variant


def test_perplexity_on_the_command_line(smollm2_q8, fast_llama, prose_tokens, tmp_path: Path, capsys) -> None:
    arguments = [
        "eval",
        "perplexity",
        str(smollm2_q8),
        "-f",
        str(PROSE),
        "-c",
        "300",
        "--edges",
        "0",
        "100",
        "300",
    ]
    arguments += [
        "--scaling",
        "none",
        "yarn:4",
        "--json",
        str(tmp_path / "a.json"),
        "--csv",
        str(tmp_path / "a.csv"),
    ]
    assert main(arguments) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["kind"] == "perplexity"
    assert found["model"]["original_context"] == 8192
    fast_llama.set_rope_scaling(RopeScaling("yarn", 4.0))
    losses = token_losses(fast_llama, prose_tokens[:300])
    row = found["rows"][3]
    assert row["losses"] == [row["loss"]]
    assert (row["scaling"], row["start"], row["stop"]) == ("yarn:4", 100, 299)
    assert row["loss"] == pytest.approx(losses[100:].mean(), abs=2e-3)  # other batches
    with (tmp_path / "a.csv").open() as file:
        assert [each["perplexity"] for each in csv.DictReader(file)] == [
            str(r["perplexity"]) for r in found["rows"]
        ]
    fast_llama.set_rope_scaling("none")
    change = (losses - token_losses(fast_llama, prose_tokens[:300]))[100:].mean()
    assert row["change"] == pytest.approx(math.expm1(change), abs=6e-3)  # other batches
    assert row["change_low"] < row["change"] < row["change_high"]
    assert (found["rows"][0]["change"], found["rows"][0]["change_low"]) == (0, 0)
    shown = capsys.readouterr().out
    assert "100 - 299" in shown and f"{row['perplexity']:.2f}" in shown


def test_a_scaling_without_a_factor_has_that_of_each_window_and_length(
    smollm2_q8, tmp_path: Path, monkeypatch
) -> None:
    path, asked = tmp_path / "short.gguf", []
    short = ["--method", "yarn", "--factor", "64", "--original-context", "128"]
    assert main(["extend", str(smollm2_q8), "-o", str(path), *short]) == 0

    def windows(llama, variants, documents, *_, window: int, **__) -> dict:
        asked.append((window, variants[0].scaling.factor))
        return {"yarn": [np.ones(599)]}

    def passkey(llama, variants, length: int, *_) -> list[Cell]:
        asked.append((length, variants[0].scaling.factor))
        return [Cell("yarn", length, 0.0, 1, 1)]

    monkeypatch.setattr("yarn_gguf.evaluate.compare.compare_windows", windows)
    monkeypatch.setattr("yarn_gguf.evaluate.compare.compare_passkey", passkey)
    read = ["eval", "perplexity", str(path), "-f", str(PROSE), "-c", "600", "--windows", "512", "320"]
    assert main([*read, "--scaling", "yarn"]) == 0
    assert main(["eval", "passkey", str(path), "--lengths", "256", "384", "--scaling", "yarn"]) == 0
    assert asked == [(512, 4.0), (320, 2.5), (256, 2.0), (384, 3.0)]


def test_windows_follow_their_options_and_all_their_losses_count(smollm2_q8, tmp_path, monkeypatch) -> None:
    asked, losses = [], np.linspace(3, 4, 599)

    def windows(llama, variants, documents, *_, **settings) -> dict:
        asked.append(settings)
        return {"file": [losses]}

    monkeypatch.setattr("yarn_gguf.evaluate.compare.compare_windows", windows)
    options = ["-c", "600", "--windows", "256", "--stride", "64", "--parallel", "3"]
    out = tmp_path / "a.json"
    assert main(["eval", "perplexity", str(smollm2_q8), "-f", str(PROSE), *options, "--json", str(out)]) == 0
    assert asked == [{"window": 256, "stride": 64, "parallel": 3}]
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["window"], row["stop"]) == ("256", 599)
    assert row["loss"] == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scaling", "none", "yarn:2", "none"], "--scaling: none is there 2 times"),
        (["--edges", "0", "100", "--windows", "64"], "--edges divide the positions of one pass"),
        (["--windows", "300", "301"], "a window of 301 tokens by strides of 256 does not fit a text of 300"),
        (["--json", "no/such/a.json"], "no/such/a.json: there is no folder no/such that can be written to"),
        (["--json", str(PROSE.parent)], f"{PROSE.parent} is not a regular file: name another"),
        (["--csv", str(PROSE)], f"{PROSE} is also an input: name another file to write to"),
        (["--plot", "a.foo"], "a.foo: '.foo' is no kind of picture"),
        (["--json", "a.x", "--csv", "a.x"], "a.x and a.x are the same file: give each output its own"),
        (["--results", str(PROSE)], f"--results {PROSE}: File exists: name a folder"),
        (["--scaling", "none", "dynamic-yarn,policy=exact"], "or a K cache of type f32"),
        (["--scaling", "none", "dynamic-yarn,policy=exact", "--windows", "280"], "or a K cache of type f32"),
    ],
)
def test_bad_options_are_refused_before_anything_is_read(
    smollm2_path, arguments: list[str], message: str, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("yarn_gguf.evaluate.compare.token_losses", lambda *_: pytest.fail("it was read"))
    monkeypatch.setattr("yarn_gguf.evaluate.compare.window_losses", lambda *_: pytest.fail("it was read"))
    assert main(["eval", "perplexity", str(smollm2_path), "-f", str(PROSE), "-c", "300", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_results_that_cannot_be_written_leave_the_old_ones(
    smollm2_q8, tmp_path: Path, monkeypatch, capsys
) -> None:
    out = tmp_path / "a.json"
    arguments = ["eval", "perplexity", str(smollm2_q8), "-f", str(PROSE), "-c", "64", "--json", str(out)]
    assert main(arguments) == 0
    before = out.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("yarn_gguf.disk.replace.os.fsync", full)
    assert main(arguments) == 1
    assert f"{out}: cannot be written (No space left on device)" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [out] and out.read_bytes() == before


def test_the_loss_of_a_single_position_has_no_interval(smollm2_q8, tmp_path: Path, capsys) -> None:
    out, again = tmp_path / "a.json", tmp_path / "page.html"
    arguments = ["eval", "perplexity", str(smollm2_q8), "-f", str(PROSE), "--scaling", "none", "yarn:2"]
    assert main([*arguments, "-c", "2", "--json", str(out), "--plot", str(tmp_path / "a.png")]) == 0
    assert "nan" not in capsys.readouterr().out
    assert json.loads(out.read_text(), parse_constant=pytest.fail)["rows"][0]["low"] is None
    assert main(["eval", "report", str(out), "-o", str(again)]) == 0
    assert "nan" not in again.read_text().partition("<table")[2]
    with pytest.raises(SystemExit):
        main([*arguments, "-c", "1"])
    assert "must be 2 or more" in capsys.readouterr().err


def test_a_model_is_loaded_with_its_options(smollm2_q8) -> None:
    parser = argparse.ArgumentParser()
    common.configure(parser)
    options = ["-t", "1", "--cache-type", "f32", "--no-flash-attn", "-ngl", "3"]
    with common.loaded(parser.parse_args([str(smollm2_q8), *options]), 64) as llama:
        params = llama.context_params
        assert (params.n_threads, params.n_threads_batch) == (1, 1)
        assert (params.type_k, params.type_v, params.flash_attn_type) == (0, 0, 0)
        assert llama.model_params.n_gpu_layers == 3


@pytest.mark.parametrize("edges", [["100"], ["200", "100"], ["-5", "100"], ["299", "400"]])
def test_edges_without_a_range_are_refused_before_anything_is_read(smollm2_path, edges, capsys) -> None:
    arguments = ["eval", "perplexity", str(smollm2_path), "-f", str(PROSE), "-c", "300", "--edges", *edges]
    assert main(arguments) == 1
    assert f"--edges {' '.join(edges)}: give two positions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("original", "context", "edges"),
    [
        (8192, 2048, [0, 512, 1024, 1536, 2047]),
        (8192, 2050, [0, 513, 1026, 1539, 2049]),
        (8192, 10241, [0, 2048, 4096, 6144, 8192, 10240]),
        (8192, 10242, [0, 2048, 4096, 6144, 8192, 10240, 10241]),
        (8192, 2, [0, 1]),
    ],
)
def test_positions_are_divided_into_quarters_by_default(
    original: int, context: int, edges: list[int]
) -> None:
    assert _quarters(original, context) == edges


@pytest.mark.parametrize(
    "arguments",
    [
        ["perplexity", "model.gguf", "-f", "a.txt", "-c", "300", "--parallel", "0"],
        ["passkey", "model.gguf", "--lengths", "300", "--trials", "0"],
        ["passkey", "model.gguf", "--lengths", "300", "--depths", "0"],
    ],
)
def test_counts_of_zero_are_refused(arguments, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["eval", *arguments])
    assert "must be a whole number > 0" in capsys.readouterr().err


def test_dynamic_scaling_builds_on_the_model_s_own_base_where_the_file_is_extended(
    smollm2_q8, tmp_path: Path
) -> None:
    """An NTK-aware file has another base."""
    path, out = tmp_path / "ntk.gguf", tmp_path / "out.json"
    assert main(["extend", str(smollm2_q8), "-o", str(path), "--method", "ntk", "--factor", "8"]) == 0
    arguments = ["eval", "perplexity", str(path), "-f", str(PROSE), "-c", "200", "--edges", "0", "200"]
    assert main([*arguments, "--scaling", "none", "dynamic-yarn", "ntk:8", "--json", str(out)]) == 0
    none, dynamic, ntk = (row["loss"] for row in json.loads(out.read_text())["rows"])
    assert none == dynamic != ntk


def test_a_missing_model_or_text_is_named(smollm2_path, tmp_path: Path, capsys) -> None:
    arguments = ["eval", "perplexity", str(tmp_path / "no.gguf"), "-f", str(PROSE), "-c", "100"]
    assert main(arguments) == 1
    assert "no.gguf" in capsys.readouterr().err
    assert main(["eval", "perplexity", str(smollm2_path), "-f", str(tmp_path / "no.txt"), "-c", "100"]) == 1
    assert "no.txt" in capsys.readouterr().err


def test_a_sweep_gives_each_scaling_each_value() -> None:
    sweep = parse_sweep("attention_factor=1,1.5")
    names = sweep.names(["yarn:2", "yarn:4,beta_fast=16"])
    assert names == [
        "yarn:2,attention_factor=1",
        "yarn:2,attention_factor=1.5",
        "yarn:4,beta_fast=16,attention_factor=1",
        "yarn:4,beta_fast=16,attention_factor=1.5",
    ]
    assert parse_variant(names[3], 1.0).scaling.attention_factor == 1.5
    assert sweep.fields(names[3]) == {"of": "yarn:4,beta_fast=16", "swept": "attention_factor", "value": 1.5}
    assert Sweep().names(["none"]) == ["none"] and Sweep().fields("yarn:2,beta_fast=3") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temperature=1", "'temperature' is none of"),
        ("attention_factor", "for each value, got ''"),
        ("beta_fast=8,many", "a number is expected for each value, got 'many'"),
    ],
)
def test_a_bad_sweep_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(RopeScalingError, match=message):
        parse_sweep(text)
