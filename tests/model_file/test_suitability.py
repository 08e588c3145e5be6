"""The verdict on a file's scaling for a context, and the command that mends it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from sparse_gguf import llama_8b
from tiny_gguf import write_tiny

from yarn_gguf import DynamicScaling, RopeScaling, RopeScalingError, extend
from yarn_gguf.cli import main
from yarn_gguf.gguf.header import read_header
from yarn_gguf.model_file.plan import plan
from yarn_gguf.model_file.suitability import Suitability, suitability
from yarn_gguf.rope.read import read_model

GIB = 1 << 30
LLAMA3 = RopeScaling("llama3", 8, low_freq_factor=1.0, high_freq_factor=4.0)


def suits(path: Path, context: int) -> Suitability:
    return plan(path, context, gpu_layers=0, ram=2 * GIB, kv_types=["f16"]).scaling


@pytest.mark.parametrize(
    ("factor", "context", "expected"),
    [
        (None, 256, "suits"),
        (None, 257, "too small"),
        (4, 1024, "better dynamic"),
        (4, 1025, "too small"),
        (4, 640, "better dynamic"),  # which needs 2.5
        (4, 512, "needlessly large"),
        (4, 100, "needlessly large"),
    ],
)
def test_a_scaling_is_judged_and_the_command_mends_it(
    model, tmp_path, monkeypatch, factor, context: int, expected: str
) -> None:
    path = tmp_path / "a model.gguf"
    path.write_bytes(model("llama").read_bytes())
    if factor:
        extend(path, RopeScaling("yarn", factor))
    found = suits(path, context)
    assert found.verdict == expected
    assert (found.command is None) == (expected == "suits")
    if found.command:
        program, *arguments = shlex.split(found.command)
        assert program == "yarn-gguf" and "--dynamic" in arguments
        assert main(arguments) == 0
        assert suits(path, context).verdict == "suits"


@pytest.mark.parametrize(
    ("scaling", "options", "context", "expected"),
    [
        (RopeScaling("yarn", 4), {"dynamic": "request"}, 200, "suits"),
        (RopeScaling("yarn", 4), {"dynamic": "request"}, 2000, "too small"),
        (RopeScaling("yarn", 4), {"finetuned": True}, 200, "suits"),
        (RopeScaling("yarn", 4), {"finetuned": True}, 2000, "too small"),
        (LLAMA3, {"context_length": 2048}, 2000, "suits"),
    ],
)
def test_a_scaling_that_the_text_or_the_training_set_is_let_be(
    model, tmp_path, scaling: RopeScaling, options: dict, context: int, expected: str
) -> None:
    done = extend(model("llama"), scaling, output=tmp_path / "model.gguf", **options)
    found = suits(done.path, context)
    assert found.verdict == expected
    if options.get("dynamic") and found.command:
        assert found.command.endswith("--dynamic request")


def test_what_training_set_is_not_extended(model, tmp_path) -> None:
    done = extend(model("llama"), LLAMA3, output=tmp_path / "model.gguf", context_length=2048)
    found = suits(done.path, 4096)
    assert (found.verdict, found.command) == ("too small", None)
    assert "trained with llama3 scaling" in found.reason


@pytest.mark.parametrize(
    "changes", [{"beta_fast": 16.0, "ramp": "rotations"}, {"beta_slow": 2.0, "truncate": False}]
)
def test_parameters_of_a_scaling_are_kept(model, tmp_path, changes: dict) -> None:
    before = RopeScaling("yarn", 4, **changes)
    path = extend(model("llama"), before, output=tmp_path / "model.gguf").path
    command = suits(path, 2048).command
    assert main(shlex.split(command)[1:]) == 0
    after = read_model(path).scaling
    assert after == replace(after, factor=8.0, **changes)


def test_a_temperature_is_left_to_the_new_factor(model, tmp_path) -> None:
    before = RopeScaling("yarn", 4, attention_factor=1.5)
    path = extend(model("llama"), before, output=tmp_path / "model.gguf").path
    assert main(shlex.split(suits(path, 2048).command)[1:]) == 0
    assert read_model(path).scaling.temperature() == RopeScaling("yarn", 8).temperature()


def test_dynamic_scaling_is_advised_where_the_library_can(model, tmp_path, monkeypatch) -> None:
    def refuse(context: int, dynamic: DynamicScaling) -> None:
        raise RopeScalingError("cannot be rotated")

    monkeypatch.setattr("yarn_gguf.model_file.paper.set_dynamic_scaling", refuse)
    path = extend(model("llama"), RopeScaling("yarn", 4), output=tmp_path / "model.gguf").path
    assert suits(path, 1024).verdict == "suits"
    assert suits(path, 300).command.endswith("--method yarn --factor 1.25")
    assert suits(path, 100).command.endswith("--method none")


def test_an_unsound_scaling_is_called_so(tmp_path) -> None:
    """`plan` never gets here: the library refuses such a file."""
    path = write_tiny(tmp_path / "m.gguf", rope__scaling__type="yarn", rope__scaling__factor=-2.0)
    found = suitability(read_header(path), 32768, lambda dynamic: True)
    assert found.verdict == "unsound" and "must be a number >= 1, got -2.0" in found.reason


def test_a_file_that_extend_refuses_gets_no_command(tmp_path) -> None:
    path = llama_8b(tmp_path / "model.gguf", rope__scaling__alpha=8.0)
    found = plan(path, 131072, memory=24 * GIB, kv_types=["f16"]).scaling
    assert (found.verdict, found.command) == ("too small", None)
    assert "alpha" in found.reason


def test_doubts_about_the_file_are_passed_on(tmp_path) -> None:
    path = llama_8b(tmp_path / "model.gguf", rope__scaling__yarn_beta_fast=16.0)
    assert "yarn_beta_fast has no effect" in plan(path, 4096, memory=24 * GIB, kv_types=["f16"]).warnings[0]
