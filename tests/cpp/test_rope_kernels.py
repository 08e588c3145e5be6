"""The CUDA kernels of the rope op, compiled for the host (kernels_on_host), against float64 in numpy."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from libraries import PROGRAMS
from rope_programs import compile_with_kernels
from rope_requests import (
    CHANGES,
    EXACT,
    HALF,
    METHODS,
    NEOX,
    NORMAL,
    Request,
    any_request,
    check,
    inv_freq_of,
)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    source = PROGRAMS / "rope_requests.cpp"
    return compile_with_kernels(source, tmp_path_factory.mktemp("bin") / "rope_kernels")


def is_exact_on_a_device(request: Request) -> bool:
    """Return whether the position stays exact. With freq_factors it passes through a float."""
    return not request.factors or request.is_table or max(map(abs, request.positions)) <= 2**20


def test_the_cuda_kernels_in_any_mode_shape_type_view_and_offset(kernels) -> None:
    generator = np.random.default_rng(3)
    requests = [any_request(generator) for _ in range(500)]
    for method in METHODS:
        table = tuple(inv_freq_of(method, 128, 1e4))
        like = Request(tuple(range(2**20 - 20, 2**20)), n_dims=128, n_all=128, factors=table, is_table=True)
        requests += [like, like.but(mode=NEOX), like.but(positions=like.positions[:3])]
    requests += [each for one, changes in CHANGES.values() for each in (one, one.but(**changes))]
    requests += [each.but(factors=()) for each in requests if not each.is_table]  # kept on a device
    check(kernels, [request for request in requests if is_exact_on_a_device(request)])


@pytest.mark.parametrize("n_tokens", [1, 15, 16, 40, 300, 1024])
@pytest.mark.parametrize("mode", [NORMAL, NEOX])
def test_the_cuda_kernels_for_few_tokens_and_for_many(kernels, n_tokens: int, mode: int) -> None:
    """The kernels take 16 bytes at a time from 16 tokens, larger blocks from 256, all heads from 1024."""
    like = Request(
        tuple(range(n_tokens)), mode=mode, n_dims=32, n_all=48, n_heads=19, factor=4.0, ext_factor=1.0
    )
    requests = [like, like.but(n_offs=16), like.but(n_offs=2), like.but(n_pad=1), like.but(n_pad=4)]
    check(kernels, [each.but(is_f16=is_f16) for each in requests for is_f16 in (False, True)])


def test_the_fused_cuda_kernels_compute_what_the_single_one_does(tmp_path) -> None:
    program = compile_with_kernels(PROGRAMS / "rope_fused.cpp", tmp_path / "rope_fused")
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 60
    for line in lines:
        type_, difference = line.split()
        assert float(difference) <= (EXACT if type_ == "f32" else 4 * HALF), lines
