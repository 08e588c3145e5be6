"""Plans that fail or find no room, bad values, and the command `yarn-gguf plan`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from sparse_gguf import mamba
from tiny_gguf import write_tiny

from yarn_gguf import ModelLoadError, RopeScaling, YarnGGUFError, extend
from yarn_gguf.cli import main
from yarn_gguf.disk.sizes import parse_binary_size, size_text
from yarn_gguf.model_file.memory_plan import MemoryPlan
from yarn_gguf.model_file.plan import plan
from yarn_gguf.native.cache_types import CACHE_TYPES

GIB = 1 << 30


def test_weights_that_do_not_fit_are_an_error_that_says_what_is_missing(big) -> None:
    message = (
        r"llama-3-8b.gguf: the weights alone take 4.2 GiB; 3.0 GiB on the GPU and 2.0 GiB of RAM, .*: 1.3 GiB"
    )
    with pytest.raises(YarnGGUFError, match=message):
        plan(big, 4096, memory=3 * GIB, ram=2 * GIB)
    with pytest.raises(
        YarnGGUFError, match=r"2.0 GiB of RAM, less the reserve, hold 1.0 GiB: 3.3 GiB of RAM are missing"
    ):
        plan(big, 4096, memory=2 * GIB, gpu_layers=0)


def test_what_fits_nowhere_is_a_plan_that_says_what_is_missing(big, capsys) -> None:
    assert main(["plan", str(big), "-c", "131072", "--memory", "6G", "--ram", "4G", "--kv-type", "f16"]) == 0
    shown = capsys.readouterr().out
    assert "too much" in shown and re.search(
        r"nothing fits: even with f16, [\d.]+ GiB of RAM are missing", shown
    )


@pytest.mark.parametrize("memory", ["100M", "228M", "1G", "1100M"])
def test_what_is_missing_makes_it_fit(model, capsys, memory: str) -> None:
    options = {"ram": 9 * GIB, "kv_types": ["f16"], "reserve": GIB}
    path, asked = model("llama"), ["-c", "500000", "--memory", memory, "--ram", "9G", "--kv-type", "f16"]
    assert main(["plan", str(path), *asked]) == 0
    (said,) = re.findall(r"even with f16, ([\d.]+ [MG]iB) on the GPU are missing", capsys.readouterr().out)
    lack = plan(path, 500000, memory=parse_binary_size(memory), **options).layouts[0].missing.gpu
    assert lack <= parse_binary_size(said) <= 1.1 * lack
    for more, fits in ((parse_binary_size(said), True), (lack, True), (lack - 1, False)):
        assert plan(path, 500000, memory=parse_binary_size(memory) + more, **options).layouts[0].fits == fits


def test_weights_fit_with_what_is_said_to_be_missing(big) -> None:
    for memory, ram in ((GIB // 2, 2 * GIB), (3 * GIB, GIB // 2)):
        with pytest.raises(YarnGGUFError) as caught:
            plan(big, 256, memory=memory, ram=ram)
        (said,) = re.findall(r": ([\d.]+ GiB) on the GPU are missing", str(caught.value))
        plan(big, 256, memory=memory + parse_binary_size(said), ram=ram)
        with pytest.raises(YarnGGUFError):
            plan(big, 256, memory=memory + parse_binary_size(said) - GIB // 5, ram=ram)


def test_a_model_without_rotary_embedding_has_a_plan(tmp_path) -> None:
    made = plan(mamba(tmp_path / "model.gguf"), 131072, gpu_layers=0, kv_types=["f16"])
    assert made.scaling.verdict == "no rope" and "no rotary embedding" in made.scaling.reason
    assert [each.kind for each in made.chosen.caches] == ["recurrent states"]


def test_a_kv_type_that_the_model_cannot_have_is_named_and_left_out(model, capsys) -> None:
    made = plan(model("llama"), 4096, gpu_layers=0, ram=2 * GIB, flash_attn=False)
    assert list(made.refused) == ["q8_0", "q4_0"]
    assert "requires flash_attn" in made.refused["q8_0"]
    with pytest.raises(ModelLoadError, match="requires flash_attn"):
        plan(model("llama"), 4096, gpu_layers=0, ram=2 * GIB, flash_attn=False, kv_types=["q8_0"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"parallel": -1}, "parallel must be at least 1, got -1"),
        ({"context": 1 << 20, "parallel": 33}, "1,048,576 x 33 tokens are more than the 33,554,432"),
        ({"parallel": 1000}, "n_seq_max must be <= 256"),
        ({"kv_types": ["q2_k"]}, "a KV cache can be of type .*, not 'q2_k'"),
        ({"gpu_layers": 4}, "the library can use no GPU here"),
    ],
)
def test_values_that_make_no_sense_are_refused(big, monkeypatch, options: dict, message: str) -> None:
    monkeypatch.setattr("yarn_gguf.model_file.plan.machine_memory", lambda: (64 * GIB, 0))
    with pytest.raises(YarnGGUFError, match=message):
        plan(big, **{"context": 4096} | options)


def test_a_file_that_is_no_model_is_refused(tmp_path) -> None:
    with pytest.raises(ModelLoadError, match=r"model.gguf: "):
        plan(write_tiny(tmp_path / "model.gguf"), 4096)


@pytest.mark.parametrize(
    ("text", "size"),
    [("24G", 24 << 30), ("24 GiB", 24 << 30), ("1.5T", 3 << 39), ("512mb", 512 << 20), ("64K", 64 << 10)],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_binary_size(text) == size
    assert parse_binary_size(size_text(size)) == size


@pytest.mark.parametrize("text", ["24", "G", "-3G", "24GG", "24X", "nan", "1e3G", ""])
def test_a_bad_size_is_refused(text: str, big, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["plan", str(big), "-c", "4096", f"--memory={text}"])
    assert "a size must be a number with its unit, such as 24G" in capsys.readouterr().err


def test_the_command_shows_the_plan_for_a_gpu(big, capsys) -> None:
    assert main(["plan", str(big), "--context", "131072", "--memory", "16G", "--ram", "32G"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[2] == "memory 16.0 GiB on the GPU, 32.0 GiB of RAM; 1.0 GiB of each is left free"
    assert "q8_0 cache full attention: 32 layers of 131,072 tokens, 8.5 GiB" in lines
    assert "use -ngl 33 (all layers), KV cache of type q8_0" in lines
    assert f"mend it by yarn-gguf extend {big} --in-place --method yarn --factor 16 --dynamic" in lines


def test_the_command_says_that_keys_are_in_float32(model, tmp_path, capsys) -> None:
    path = extend(model("llama"), RopeScaling("yarn", 4), output=tmp_path / "m.gguf", dynamic="exact").path
    assert main(["plan", str(path), "-c", "1024", "-ngl", "0", "--kv-type", "q8_0"]) == 0
    assert "KV cache of type q8_0, K in f32 for dynamic scaling exact" in capsys.readouterr().out


def test_the_command_prints_json(big, capsys) -> None:
    assert main(["plan", str(big), "-c", "131072", "--memory", "16G", "--ram", "32G", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["chosen"] == "q8_0"
    assert [each["fits"] for each in shown["layouts"]] == [True, True, True]
    assert shown["layouts"][1]["use"]["gpu"] < 15 * GIB
    assert shown["arguments"]["type_k"] == CACHE_TYPES["q8_0"]


def test_memory_is_that_of_this_machine_unless_given(big) -> None:
    made: MemoryPlan = plan(big, 4096, kv_types=["f16"])
    pages = Path("/proc/meminfo").read_text().split()[1] if sys.platform == "linux" else None
    assert pages is None or made.ram == pytest.approx(int(pages) * 1024, rel=0.01)
