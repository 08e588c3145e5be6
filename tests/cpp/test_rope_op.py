"""The maths of rope in C++ and the op on the CPU, against yarn_gguf.rope, float64 and mpmath."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import mpmath
import numpy as np
import pytest
import rope_requests
from libraries import PROGRAMS, ROOT
from rope_programs import SOURCES, TREE, compile_on_ggml, compile_program

from yarn_gguf.rope.scaling import RopeScaling

METHODS = ("none", "linear", "ntk", "by-parts", "yarn")


@pytest.fixture(scope="module")
def rope_math(tmp_path_factory) -> Path:
    return compile_program(PROGRAMS / "rope_math.cpp", tmp_path_factory.mktemp("bin") / "rope_math")


@pytest.fixture(scope="module")
def rope_op(tmp_path_factory) -> Path:
    return compile_on_ggml(ROOT / "benchmarks" / "rope_op.cpp", tmp_path_factory.mktemp("bin") / "rope_op")


def test_the_formulas_in_c_are_those_in_python(rope_math: Path) -> None:
    generator = np.random.default_rng(0)
    lines, expected = [], []
    for _ in range(400):
        method = METHODS[generator.integers(5)]
        factor, base = generator.uniform(1, 64), 10 ** generator.uniform(4, 7)
        context, dim = int(generator.integers(64, 20000)), 2 * int(generator.integers(2, 128))
        fast, slow = generator.uniform(8, 64), generator.uniform(0.5, 4)
        rotations, truncate = bool(generator.integers(2)), bool(generator.integers(2))
        numbers = (
            METHODS.index(method),
            factor,
            context,
            fast,
            slow,
            int(rotations),
            int(truncate),
            base,
            dim,
        )
        ramp = "rotations" if rotations else "index"
        scaling = RopeScaling(
            method, factor, context, beta_fast=fast, beta_slow=slow, ramp=ramp, truncate=truncate
        )
        table = scaling.frequencies(dim, base)
        lines.append(" ".join(repr(float(x)) if isinstance(x, float) else str(x) for x in numbers))
        expected.append([table.attention_factor, *table.inv_freq])
    done = subprocess.run([rope_math], input="\n".join(lines), capture_output=True, text=True, check=True)
    for line, got, wanted in zip(lines, done.stdout.splitlines(), expected, strict=True):
        np.testing.assert_allclose(np.array(got.split(), float), wanted, rtol=1e-12, err_msg=line)


def accuracy(program: Path, upstream: bool) -> str:
    variables = {"YARN_GGUF_UPSTREAM_ROPE": "1"} if upstream else {}
    command = [program, "accuracy", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=variables).stdout


@pytest.fixture(scope="module")
def ours_and_theirs(rope_op: Path) -> tuple[str, str]:
    return accuracy(rope_op, upstream=False), accuracy(rope_op, upstream=True)


def test_angles_are_exact_to_position_a_million_for_every_method(ours_and_theirs) -> None:
    """Covered: both modes, 64 to 256 dimensions, bases 1e4 to 1e7; operands, table and freq_factors."""
    ours, theirs = (
        {name: float(error) for name, error in re.findall(r"2\^20, (.+?) +(\S+e\S+)\n", output)}
        for output in ours_and_theirs
    )
    assert len(ours) == 7
    assert all(error <= 2e-6 for error in ours.values()), ours
    assert all(error > 1e-2 for error in theirs.values()), theirs  # upstream's arithmetic, for comparison


def test_attention_depends_on_the_distance_alone_a_million_tokens_away(ours_and_theirs) -> None:
    ours, theirs = (float(re.search(r"relative difference: (\S+)", output)[1]) for output in ours_and_theirs)
    assert ours <= 1e-5
    assert theirs > 1e-3  # upstream's arithmetic, for comparison


def test_a_rotation_backwards_undoes_the_same_one_forwards_on_the_same_thread(tmp_path: Path) -> None:
    program = compile_on_ggml(PROGRAMS / "rope_round_trip.cpp", tmp_path / "rope_round_trip")
    differences = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    assert len(differences) == 2
    assert all(float(each) < 1e-5 for each in differences), differences


@pytest.mark.parametrize("divided", [False, True], ids=["steps", "freq_factors"])
def test_the_device_s_path_is_exact_too(tmp_path: Path, divided: bool) -> None:
    """The header is compiled as for a device, with its intrinsics emulated. Positions go up to 2^20."""
    program = compile_program(PROGRAMS / "rope_device.cpp", tmp_path / "rope_device", "-ffast-math")
    generator = np.random.default_rng(0)
    inv_freq, factors = [], []
    for method, dim, base in itertools.product(
        rope_requests.METHODS, (64, 96, 128, 256), (1e4, 1e5, 1e6, 1e7)
    ):
        theta = base ** (-np.arange(0, dim, 2) / dim)
        table = rope_requests.inv_freq_of(method, dim, base)
        inv_freq.extend(theta if divided else table)
        factors.extend((theta / table).astype(np.float32) if divided else np.zeros(dim // 2))
    inv_freq, factors = np.array(inv_freq), np.array(factors, np.float64)
    positions = generator.integers(0, 2**20 + 1, len(inv_freq))
    positions[::7] = 2**20
    lines = [
        f"{f!r} {d!r} {p}" for f, d, p in zip(inv_freq.tolist(), factors.tolist(), positions, strict=True)
    ]
    done = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True)
    got = np.array([line.split() for line in done.stdout.splitlines()], float)
    angles = positions * inv_freq / (factors if divided else 1.0)
    chords = np.hypot(got[:, 0] - np.cos(angles), got[:, 1] - np.sin(angles))
    assert len(chords) == len(inv_freq)
    assert chords.max() <= 2e-6


@pytest.mark.parametrize("position", [1, 4095, 131072, 2**20, 2**24 + 1])
@pytest.mark.parametrize("inv_freq", [1.0, 0.0316227766, 1.7e-5])
def test_float64_is_a_fit_witness(position: int, inv_freq: float) -> None:
    """The tests of angles trust float64's remainder. mpmath checks it here with 50 digits."""
    with mpmath.workdps(50):
        exact = mpmath.cos(mpmath.mpf(position) * mpmath.mpf(inv_freq))
    assert abs(np.cos(np.float64(position) * np.float64(inv_freq)) - float(exact)) < 1e-8


def compile_for_cuda(source: Path, output: Path, *options: str) -> None:
    cuda = TREE / "ggml" / "src" / "ggml-cuda"
    folders = (PROGRAMS / "cuda", SOURCES, TREE / "ggml" / "include", TREE / "ggml" / "src", cuda)
    command = ["nvcc", "-std=c++17", "-use_fast_math", "-extended-lambda", *options]
    command += [f"-I{folder}" for folder in folders]
    done = subprocess.run([*command, source, "-o", output], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="CUDA's compiler is not here")


@needs_nvcc
def test_cuda_reads_nothing_early_that_the_kernel_before_may_still_write(tmp_path: Path) -> None:
    """On sm_90 a kernel starts before the previous one has ended, and waits for it in the middle.

    The assembler moves loads through the read-only cache (ld.global.nc, from __restrict__) before that wait.
    """
    ptx = tmp_path / "rope.ptx"
    compile_for_cuda(SOURCES / "ggml-rope-cuda.cu", ptx, "-O3", "-arch=compute_90", "-ptx")
    text = ptx.read_text()
    kernels = text.split(".entry ")[1:]
    assert len(kernels) >= 28
    assert all("griddepcontrol.wait" in kernel for kernel in kernels)
    assert "ld.global.nc" not in text


@needs_nvcc
def test_the_cuda_kernels_compile_for_every_architecture(tmp_path: Path) -> None:
    architectures = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in (75, 86, 89)]
    architectures.append("-gencode=arch=compute_90,code=[sm_90,compute_90]")
    for source in (SOURCES / "ggml-rope-cuda.cu", TREE / "ggml" / "src" / "ggml-cuda" / "rope.cu"):
        compile_for_cuda(source, tmp_path / "out.o", *architectures, "-c")
