"""A plan states the sizes that the library allocates, and allocates nothing."""

from __future__ import annotations

import logging
import math
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import gguf
import pytest
from libraries import ROOT
from sparse_gguf import lfm2, mamba

from yarn_gguf import RopeScaling, extend
from yarn_gguf.model_file.layout import LONGEST
from yarn_gguf.model_file.memory_plan import Layout
from yarn_gguf.model_file.plan import plan
from yarn_gguf.native.cache_types import CACHE_TYPES
from yarn_gguf.run.llama import Llama

GIB = 1 << 30
BYTES = {"f32": 4, "f16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32}  # of an element
F16_CACHE = {"type_k": CACHE_TYPES["f16"], "type_v": CACHE_TYPES["f16"]}
CONTEXTS = (4096, 32768, 131072)
LAYERS = 2
WINDOW, UBATCH = 64, 512


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
