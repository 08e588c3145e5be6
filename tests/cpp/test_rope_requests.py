"""The CPU's rope op in all modes and shapes, with what its threads cache, against float64 in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from libraries import PROGRAMS, UNPATCHED
from rope_programs import compile_on_ggml
from rope_requests import (
    CHANGES,
    METHODS,
    MODES,
    NEOX,
    NORMAL,
    ONE,
    Request,
    any_request,
    check,
    compute,
    inv_freq_of,
    peak_memory,
)

LAST = 2**31 - 1


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    source = PROGRAMS / "rope_requests.cpp"
    return compile_on_ggml(source, tmp_path_factory.mktemp("bin") / "rope_requests")


def far_positions(n: int) -> tuple[int, ...]:
    positions = np.random.default_rng(0).integers(0, 2**20 + 1, n)
    positions[:2] = 2**20, 2**20 - 1
    return tuple(positions.tolist())


@pytest.mark.parametrize("name", METHODS)
def test_a_table_of_any_method_is_exact_to_position_a_million(program, name: str) -> None:
    requests = []
    for dim in (64, 96, 128, 256):
        for base in (1e4, 1e5, 1e6, 1e7):
            table = tuple(inv_freq_of(name, dim, base))
            factors = tuple((base ** (-np.arange(0, dim, 2) / dim) / table).astype(np.float32).tolist())
            like = Request(far_positions(200), n_dims=dim, n_all=dim, n_heads=1, base=base)
            for mode in (NORMAL, NEOX):
                requests.append(like.but(mode=mode, factors=table, is_table=True))
                requests.append(like.but(mode=mode, factors=factors))
    check(program, requests)


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.6, 3.0, 3.2, 10.0, 32.768, 40.0, 100000 / 8192])
@pytest.mark.parametrize("ext_factor", [0.0, 1.0], ids=["linear", "yarn"])
def test_a_factor_is_not_rounded_with_its_inverse(program, factor: float, ext_factor: float) -> None:
    """The op's operand is float32: 1/3 in float32 is 1e-2 radians off at position 2^20."""
    like = Request(far_positions(200), factor=factor, ext_factor=ext_factor)
    check(program, [like.but(mode=mode, base=base) for mode in (NORMAL, NEOX) for base in (1e4, 1e7)])


def test_any_mode_shape_type_view_offset_and_number_of_threads(program) -> None:
    generator = np.random.default_rng(0)
    check(program, [any_request(generator) for _ in range(600)])


@pytest.mark.parametrize("mode", MODES)
def test_any_position(program, mode: str) -> None:
    for position in (-LAST - 1, -LAST, -1, 0, LAST):
        positions = (position, position, position, position)
        sections = (16, 16, 0, 0) if mode in ("mrope", "imrope", "vision") else (0, 0, 0, 0)
        check(program, [Request(positions, mode=MODES[mode], n_dims=32, sections=sections)])


def test_upstream_s_arithmetic_is_restored_bit_for_bit_in_any_mode(program) -> None:
    generator = np.random.default_rng(2)
    requests = [any_request(generator) for _ in range(300)]
    (restored,) = compute(program, requests, variables={"YARN_GGUF_UPSTREAM_ROPE": "1"})
    (upstream,) = compute(program, requests, variables={"LD_LIBRARY_PATH": str(UNPATCHED)})
    (ours,) = compute(program, requests)
    for got, expected, request in zip(restored, upstream, requests, strict=True):
        assert np.array_equal(got, expected, equal_nan=True), request
    assert sum(not np.array_equal(a, b) for a, b in zip(ours, upstream, strict=True)) > 200


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_thread_keeps_holds_for_the_same_operands_and_positions_alone(program, change: str) -> None:
    request, changes = CHANGES[change]
    other = request.but(**changes)
    check(program, [request, other, request, other.but(n_heads=1), request.but(n_heads=1)])


def test_a_thread_keeps_rows_of_more_kinds_of_rope_than_a_model_has(program) -> None:
    kinds = [ONE.but(base=10000.0 + 1000.0 * k) for k in range(7)]
    check(program, [*kinds, *kinds, *reversed(kinds)])


@pytest.mark.parametrize("mode", [NORMAL, NEOX])
def test_a_ubatch_of_any_length(program, mode: int) -> None:
    """Longer than a thread's cache; then a shorter one of the same operands at other positions."""
    like = Request(tuple(range(8192)), mode=mode, n_dims=16, n_all=16, n_heads=1)
    later = tuple(range(100000, 108193))
    requests = [like, like, like.but(positions=later), like.but(positions=later[5:17]), like.but(n_threads=3)]
    check(program, requests)


def test_what_a_thread_keeps_is_bounded(program) -> None:
    """A thread caches 4 kinds of 4096 tokens (2 MB each here), for any number and length of ropes."""
    one = Request(tuple(range(32768)), n_heads=1)
    kinds = [one.but(base=10000.0 + k) for k in range(8)]
    assert peak_memory(program, kinds) - peak_memory(program, [one] * 8) < 10e6


def test_threads_with_models_of_their_own_do_not_disturb_each_other(program) -> None:
    generator = np.random.default_rng(1)
    check(program, [any_request(generator) for _ in range(150)], n_copies=3)
