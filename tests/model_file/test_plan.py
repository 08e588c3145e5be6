"""A plan states the sizes that the library allocates, and allocates nothing."""

from __future__ import annotations

import json
import logging
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import transformers
from conformance import ROWS, make_model
from hf_checkpoints import convert_weights
from libraries import ROOT
from sparse_gguf import lfm2, llama_8b, mamba
from tiny_gguf import write_tiny

from yarn_gguf import DynamicScaling, ModelLoadError, RopeScaling, RopeScalingError, YarnGGUFError, extend
from yarn_gguf.cli import main
from yarn_gguf.disk.sizes import parse_size, size_text
from yarn_gguf.gguf.header import read_header
from yarn_gguf.model_file.layout import LONGEST
from yarn_gguf.model_file.memory_plan import Layout, MemoryPlan
from yarn_gguf.model_file.plan import plan
from yarn_gguf.model_file.suitability import Suitability, suitability
from yarn_gguf.native.cache_types import CACHE_TYPES
from yarn_gguf.rope.read import read_model
from yarn_gguf.run.llama import Llama

GIB = 1 << 30
BYTES = {"f32": 4, "f16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32}  # of an element
F16_CACHE = {"type_k": CACHE_TYPES["f16"], "type_v": CACHE_TYPES["f16"]}
CONTEXTS = (4096, 32768, 131072)
LAYERS = 2
WINDOW, UBATCH = 64, 512
LLAMA3 = RopeScaling("llama3", 8, low_freq_factor=1.0, high_freq_factor=4.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Return a function that makes a float16 GGUF file from the name of a row of the conformance matrix."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    made = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("checkpoint")
            make_model(ROWS[name], RopeScaling()).save_pretrained(folder)
            convert_weights(folder, folder / "model.gguf", type="f16", scaling=RopeScaling())
            made[name] = folder / "model.gguf"
        return made[name]

    yield make


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sparse file of Llama 3 8B in Q4_0: it has the sizes, but no weights."""
    return llama_8b(tmp_path_factory.mktemp("sparse") / "llama-3-8b.gguf")


def allocated(path: Path, capfd: pytest.CaptureFixture, **arguments: object) -> dict[str, float]:
    """Return the MiB in the log of a real Llama: of model, KV, RS (recurrent states) and compute."""
    capfd.readouterr()
    try:
        with closing(Llama(path, verbose=True, **arguments)):
            log = capfd.readouterr().err
    finally:
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    found = re.findall(r"(model|KV|RS|compute) buffer size = +([\d.]+) MiB", log)
    sums = dict.fromkeys(("model", "KV", "RS", "compute"), 0.0)
    for kind, size in found:
        sums[kind] += float(size)
    assert sums["model"] and sums["compute"], log
    return sums


def planned(layout: Layout) -> dict[str, float]:
    """Return the same sizes of a plan."""
    caches = {"KV": 0, "RS": 0}
    for each in layout.caches:
        caches["RS" if each.kind == "recurrent states" else "KV"] += each.use.total
    sizes = {"model": layout.weights.total, "compute": layout.compute.total, **caches}
    return {kind: size / 2**20 for kind, size in sizes.items()}


def in_ram(path: Path, context: int, kv_type: str, **options: object) -> Layout:
    return plan(path, context, **{"gpu_layers": 0, "ram": 2 * GIB, "kv_types": [kv_type]} | options).layouts[
        0
    ]


# ---- the sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gemma3", "deepseek-v2"])
def test_what_is_planned_is_what_the_library_allocates(
    model, capfd, name: str, kv_type: str, context: int
) -> None:
    arguments = {
        "type_k": CACHE_TYPES[kv_type],
        "type_v": CACHE_TYPES[kv_type],
        "swa_full": False,
        "flash_attn": True,
    }
    real = allocated(model(name), capfd, n_ctx=context, **arguments)
    assert planned(in_ram(model(name), context, kv_type)) == pytest.approx(real, rel=0.01, abs=0.01)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"flash_attn": False}, {"flash_attn": False, "swa_full": False}),
        ({"swa_full": True}, {"flash_attn": True, "swa_full": True}),
        ({"ubatch": 64}, {"flash_attn": True, "swa_full": False, "n_batch": 64, "n_ubatch": 64}),
    ],
    ids=["plain attention", "full windows", "ubatch"],
)
def test_options_are_those_of_the_library(model, capfd, options: dict, arguments: dict) -> None:
    real = allocated(model("gemma3"), capfd, n_ctx=32768, **F16_CACHE, **arguments)
    assert planned(in_ram(model("gemma3"), 32768, "f16", **options)) == pytest.approx(
        real, rel=0.01, abs=0.01
    )


@pytest.mark.parametrize("make", [lfm2, mamba])
def test_states_are_planned_as_they_are_allocated(tmp_path, capfd, make) -> None:
    path = make(tmp_path / "model.gguf", layers=8, width=2048)
    real = allocated(path, capfd, n_ctx=32768, **F16_CACHE, flash_attn=True)
    assert real["RS"] > 0.05
    assert planned(in_ram(path, 32768, "f16")) == pytest.approx(real, rel=0.01, abs=0.01)


def cache_formula(name: str, kv_type: str, context: int) -> dict[str, float]:
    """Return the bytes of each kind of cache, from the shapes in tests/helpers/conformance.py alone."""
    width = BYTES[kv_type]
    if name == "deepseek-v2":  # the compressed part and the rotary one; V is a view of it
        return {"compressed attention (MLA)": LAYERS * context * (32 + 32) * width}
    of_a_token = 2 * 2 * 32 * width  # K and V, heads, their size
    if name == "gemma3":
        cells = 256 * math.ceil((WINDOW + UBATCH) / 256)
        return {"full attention": context * of_a_token, "sliding window": cells * of_a_token}
    return {"full attention": LAYERS * context * of_a_token}


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "deepseek-v2"])
def test_caches_have_the_size_of_their_formula(model, name: str, kv_type: str) -> None:
    layout = in_ram(model(name), 32768, kv_type)
    assert {each.kind: each.use.ram for each in layout.caches} == cache_formula(name, kv_type, 32768)
    assert sum(each.layers for each in layout.caches) == LAYERS


def test_texts_in_parallel_have_a_cache_each(model) -> None:
    one, three = (in_ram(model("llama"), 4000, "f16", parallel=count).caches[0] for count in (1, 3))
    assert (one.cells, three.cells) == (4096, 3 * 4096)
    assert three.use.ram == 3 * one.use.ram


def test_many_texts_have_a_state_each(tmp_path) -> None:
    states = [
        in_ram(lfm2(tmp_path / "model.gguf"), 256, "f16", parallel=count).caches[-1] for count in (1, 64)
    ]
    assert states[0].use.ram == 2 * 512 * 2 * 4  # layers, width, columns, float32
    assert states[1].use.ram == 64 * states[0].use.ram


# ---- the GPU -----------------------------------------------------------------------------------


def test_layers_on_the_gpu_take_their_weights_and_caches_there(big) -> None:
    layers = 12
    layout = plan(big, 8192, memory=24 * GIB, gpu_layers=layers).layouts[0]
    there, here = 0, 0
    for tensor in gguf.GGUFReader(big).tensors:
        block = re.match(r"blk\.(\d+)\.", tensor.name)
        is_there = int(block[1]) >= 32 - (layers - 1) if block else tensor.name.startswith("output")
        there, here = (there + tensor.n_bytes, here) if is_there else (there, here + tensor.n_bytes)
    assert layout.weights.gpu == pytest.approx(there, rel=1e-6)
    assert layout.weights.ram == pytest.approx(here, rel=1e-6)
    of_a_layer = 2 * 1024 * 2 * 8192
    assert (layout.caches[0].use.gpu, layout.caches[0].use.ram) == (11 * of_a_layer, 21 * of_a_layer)


def test_a_gpu_reads_a_quantized_cache_through_a_copy_of_a_layer_in_f16(big) -> None:
    f16, q8 = plan(big, 1 << 20, memory=999 * GIB, kv_types=["f16", "q8_0"]).layouts
    assert q8.compute.gpu - f16.compute.gpu == pytest.approx(2 * 1024 * 2 * (1 << 20), rel=0.25)
    assert q8.compute.gpu > f16.compute.gpu


def test_as_many_layers_are_on_the_gpu_as_fit(big) -> None:
    layout = plan(big, 131072, memory=12 * GIB, ram=64 * GIB, kv_types=["f16"]).layouts[0]
    assert layout.fits and 0 < layout.gpu_layers < 33
    assert layout.use.gpu <= 11 * GIB
    more = plan(
        big, 131072, memory=12 * GIB, ram=64 * GIB, kv_types=["f16"], gpu_layers=layout.gpu_layers + 1
    )
    assert not more.layouts[0].fits and more.chosen is None
    assert more.layouts[0].missing.gpu == more.layouts[0].use.gpu - 11 * GIB


@pytest.mark.parametrize(
    ("memory", "kv_type", "layers"), [(24, "f16", 33), (16, "q8_0", 33), (11, "q4_0", 33), (8, "q4_0", None)]
)
def test_the_best_kv_type_is_chosen_with_which_all_fits_on_the_gpu(big, memory, kv_type, layers) -> None:
    made = plan(big, 131072, memory=memory * GIB, ram=64 * GIB)
    assert made.chosen.kv_type == kv_type
    assert made.chosen.gpu_layers == max(each.gpu_layers for each in made.layouts)
    assert made.arguments["n_gpu_layers"] == made.chosen.gpu_layers
    assert layers is None or made.chosen.gpu_layers == layers == made.layers


@pytest.mark.parametrize(
    ("options", "layers"),
    [({"memory": 24 * GIB}, 33), ({"gpu_layers": 0, "memory": 24 * GIB}, 0), ({"memory": 5 * GIB}, None)],
)
def test_the_largest_context_fits_and_no_larger(big, options: dict, layers: int | None) -> None:
    options = {"kv_types": ["q8_0"], "ram": 64 * GIB} | options
    layout = plan(big, 4096, **options).layouts[0]
    assert 4096 < layout.largest_context < LONGEST
    options["gpu_layers"] = (
        layout.gpu_layers if layers is None else layers
    )  # None: not even a short text fits with all layers there
    for context, fits in ((layout.largest_context, True), (layout.largest_context + 256, False)):
        assert plan(big, context, **options).layouts[0].fits == fits


def test_no_context_is_looked_for_beyond_a_limit(model) -> None:
    assert in_ram(model("llama"), 4096, "q4_0", ram=99 * GIB).largest_context == LONGEST
    assert in_ram(model("llama"), 4096, "q4_0", ram=99 * GIB, parallel=8).largest_context == LONGEST // 8


def test_the_arguments_make_what_was_planned(model, capfd) -> None:
    made = plan(model("gemma3"), 20000, gpu_layers=0, ram=2 * GIB, kv_types=["q8_0"], ubatch=128)
    real = allocated(model("gemma3"), capfd, **made.arguments)
    assert planned(made.chosen) == pytest.approx(real, rel=0.01, abs=0.01)
    assert plan(model("gemma3"), 20000, parallel=2).arguments is None


def test_a_file_for_exact_dynamic_scaling_is_planned_with_its_keys_in_float32(model, tmp_path, capfd) -> None:
    path = extend(model("llama"), RopeScaling("yarn", 4), output=tmp_path / "m.gguf", dynamic="exact").path
    made = plan(path, 1024, gpu_layers=0, ram=2 * GIB, kv_types=["q8_0"])
    of_a_token = LAYERS * 2 * 32 * (BYTES["f32"] + BYTES["q8_0"])  # heads, their size
    assert made.chosen.caches[0].use.ram == 1024 * of_a_token
    assert planned(made.chosen) == pytest.approx(allocated(path, capfd, **made.arguments), rel=0.01, abs=0.01)


@pytest.fixture
def mamba_of_many_states(tmp_path) -> Path:
    return mamba(tmp_path / "model.gguf", layers=16, width=4096)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("big", "131072, memory=80 << 30, ram=200 << 30, parallel=4", 64),
        ("mamba_of_many_states", "256, gpu_layers=0, ram=99 << 30, parallel=256", 2),
    ],
)
def test_nothing_of_what_is_planned_for_is_allocated(request, name: str, options: str, size: int) -> None:
    code = f"""
import resource
from yarn_gguf.model_file.plan import plan
held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
made = plan({str(request.getfixturevalue(name))!r}, {options})
assert made.chosen.use.total > {size} << 30, made
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 400  # MiB: the library's notes on tokens


# ---- the scaling -------------------------------------------------------------------------------


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


# ---- errors and the command --------------------------------------------------------------------


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
    lack = plan(path, 500000, memory=parse_size(memory), **options).layouts[0].missing.gpu
    assert lack <= parse_size(said) <= 1.1 * lack
    for more, fits in ((parse_size(said), True), (lack, True), (lack - 1, False)):
        assert plan(path, 500000, memory=parse_size(memory) + more, **options).layouts[0].fits == fits


def test_weights_fit_with_what_is_said_to_be_missing(big) -> None:
    for memory, ram in ((GIB // 2, 2 * GIB), (3 * GIB, GIB // 2)):
        with pytest.raises(YarnGGUFError) as caught:
            plan(big, 256, memory=memory, ram=ram)
        (said,) = re.findall(r": ([\d.]+ GiB) on the GPU are missing", str(caught.value))
        plan(big, 256, memory=memory + parse_size(said), ram=ram)
        with pytest.raises(YarnGGUFError):
            plan(big, 256, memory=memory + parse_size(said) - GIB // 5, ram=ram)


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
    assert parse_size(text) == size
    assert parse_size(size_text(size)) == size


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
