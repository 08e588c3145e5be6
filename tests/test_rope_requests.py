"""The rope op of the CPU in all its modes and shapes, and what its threads keep, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from libraries import ROOT, UNPATCHED
from rope_programs import compile_on_ggml
from rope_requests import (
    IMROPE,
    METHODS,
    MODES,
    MROPE,
    NEOX,
    NORMAL,
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
    source = ROOT / "tests" / "rope_requests.cpp"
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
    """1/3 as a float32, which the op has for an operand, is 1e-2 radians off at position 2^20."""
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


POSITIONS = tuple(range(1000, 1009))
FACTORS = tuple(1 + i / 32 for i in range(32))
ONE = Request(POSITIONS, factor=4.0, ext_factor=1.0, factors=FACTORS)
MANY = ONE.but(mode=MROPE, positions=tuple(range(5, 41)), sections=(8, 8, 8, 8))
TABLE = Request(POSITIONS, factors=tuple(1.0 / (1 + i) for i in range(32)), is_table=True)
CHANGES = {
    "direction": (ONE, {"is_forward": False}),
    "n_dims": (ONE, {"n_dims": 32, "n_all": 64, "factors": ()}),
    "mode": (ONE, {"mode": NEOX}),
    "n_ctx_orig": (ONE, {"n_ctx_orig": 1024}),
    "base": (ONE, {"base": 20000.0}),
    "factor": (ONE, {"factor": 8.0}),
    "ext_factor": (ONE, {"ext_factor": 0.5}),
    "attn_factor": (ONE, {"attn_factor": 1.5}),
    "beta_fast": (ONE, {"beta_fast": 8.0}),
    "beta_slow": (ONE, {"beta_slow": 4.0}),
    "sections 0, 1": (MANY, {"sections": (9, 7, 8, 8)}),
    "sections 2, 3": (MANY, {"sections": (8, 8, 9, 7)}),
    "section 3": (MANY, {"sections": (8, 8, 8, 4)}),
    "the kind of sections": (MANY, {"mode": IMROPE}),
    "the first factor": (ONE, {"factors": (2.0, *FACTORS[1:])}),
    "the last factor": (ONE, {"factors": (*FACTORS[:-1], 1.0)}),
    "no factors": (ONE, {"factors": ()}),
    "the last of a table": (TABLE, {"factors": (*TABLE.factors[:-1], 0.5)}),
    "a table": (TABLE.but(is_table=False, factors=FACTORS), {"is_table": True}),
    "the first position": (ONE, {"positions": (7, *POSITIONS[1:])}),
    "the last position": (ONE, {"positions": (*POSITIONS[:-1], 7)}),
    "the height of a token": (MANY, {"positions": (*range(5, 14), 99, *range(15, 41))}),
    "the last extra position": (MANY, {"positions": (*range(5, 40), 99)}),
    "one token": (ONE, {"positions": POSITIONS[4:5]}),
    "offset": (ONE.but(n_dims=32, factors=()), {"n_offs": 16}),
}


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
    """Longer than what a thread keeps; then a shorter one of the same operands at other positions."""
    like = Request(tuple(range(8192)), mode=mode, n_dims=16, n_all=16, n_heads=1)
    later = tuple(range(100000, 108193))
    requests = [like, like, like.but(positions=later), like.but(positions=later[5:17]), like.but(n_threads=3)]
    check(program, requests)


def test_what_a_thread_keeps_is_bounded(program) -> None:
    """4 kinds of 4096 tokens, 2 MB each here, however many ropes there are and however long they are."""
    one = Request(tuple(range(32768)), n_heads=1)
    kinds = [one.but(base=10000.0 + k) for k in range(8)]
    assert peak_memory(program, kinds) - peak_memory(program, [one] * 8) < 10e6


def test_threads_with_models_of_their_own_do_not_disturb_each_other(program) -> None:
    generator = np.random.default_rng(1)
    check(program, [any_request(generator) for _ in range(150)], n_copies=3)
