"""Requests of rope ops: computed by rope_requests.cpp, and by numpy in float64 as the reference.

The reference follows ggml's documentation of the op and the YaRN paper, pair by pair. It shares only the
names of the operands with the C++ code.
"""

from __future__ import annotations

import math
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from yarn_gguf.rope.scaling import RopeScaling

NORMAL, NEOX, MROPE, VISION, IMROPE = 0, 2, 8, 24, 40
MODES = {"normal": NORMAL, "neox": NEOX, "mrope": MROPE, "vision": VISION, "imrope": IMROPE}

_SCALINGS = {
    "none": RopeScaling("none"),
    "linear": RopeScaling("linear", 3.0),
    "ntk": RopeScaling("ntk", 10.0),
    "by-parts": RopeScaling("by-parts", 3.0, 4096),
    "by-parts, rotations": RopeScaling("by-parts", 3.0, 4096, ramp="rotations"),
    "yarn": RopeScaling("yarn", 40.0, 4096),
    "yarn, rotations": RopeScaling("yarn", 12.20703125, 8192, ramp="rotations"),
    "yarn, untruncated": RopeScaling("yarn", 32.0, 4096, truncate=False),
    "llama3": RopeScaling("llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0),
}
METHODS = (*_SCALINGS, "longrope")

EXACT = 2e-6
HALF = 2.0**-10  # two roundings to 11 bits


def inv_freq_of(method: str, dim: int, base: float) -> np.ndarray:
    """Return the frequencies of one of METHODS: float64 (dim/2,), radians per position."""
    if method == "longrope":
        long = tuple(1 + 2 * i / dim for i in range(dim // 2))
        scaling = RopeScaling("longrope", 16.0, 4096, short_factor=long[::-1], long_factor=long)
        return scaling.frequencies(dim, base, seq_len=2**20).inv_freq
    return _SCALINGS[method].frequencies(dim, base).inv_freq


@dataclass(frozen=True)
class Request:
    """One rope op.

    factors: freq_factors; with is_table, the radians per position of each pair.
    n_pad: heads and channels around the view in its tensor.
    factor: s. The op's freq_scale is 1/s in float32.
    """

    positions: tuple[int, ...]
    mode: int = NORMAL
    n_dims: int = 64
    n_all: int = 64
    n_heads: int = 3
    n_batches: int = 1
    n_offs: int = 0
    n_pad: int = 0
    n_threads: int = 1
    is_f16: bool = False
    is_forward: bool = True
    is_inplace: bool = False
    is_table: bool = False
    factors: tuple[float, ...] = ()
    sections: tuple[int, int, int, int] = (0, 0, 0, 0)
    n_ctx_orig: int = 4096
    base: float = 10000.0
    factor: float = 1.0
    ext_factor: float = 0.0
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    @property
    def n_tokens(self) -> int:
        return len(self.positions) // (4 if self.mode & MROPE else 1)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.n_batches, self.n_tokens, self.n_heads, self.n_all

    @property
    def n_pairs(self) -> int:
        return self.n_dims if self.mode == VISION else self.n_dims // 2

    def line(self) -> str:
        """Return the line of input that rope_requests.cpp reads."""
        integers = (
            *(self.n_threads, self.is_f16, self.mode, self.n_dims, self.n_offs, self.n_ctx_orig),
            *self.sections,
            *(self.is_forward, self.is_inplace, self.is_table),
            *(self.n_all, self.n_heads, self.n_tokens, self.n_batches, self.n_pad),
            *(len(self.positions), len(self.factors)),
        )
        floats = (self.base, np.float32(1 / self.factor), self.ext_factor, self.attn_factor)
        floats += (self.beta_fast, self.beta_slow)
        numbers = [f"{int(x)}" for x in integers] + [f"{x:.9g}" for x in floats]
        return " ".join([*numbers, *map(str, self.positions), *(f"{x:.17g}" for x in self.factors)])

    def input(self) -> np.ndarray:
        """Return the input: float64, self.shape. It is a view of the tensor in rope_requests.cpp."""
        pad = self.n_pad
        whole = (self.n_batches, self.n_tokens, self.n_heads + 2 * pad, self.n_all + 2 * pad)
        words = np.arange(math.prod(whole), dtype=np.uint32) * np.uint32(2654435761)
        values = (words / 2.0**32 - 0.5).astype(np.float32)
        if self.is_f16:
            values = values.astype(np.float16)
        heads, channels = slice(pad, pad + self.n_heads), slice(pad, pad + self.n_all)
        return values.astype(np.float64).reshape(whole)[:, :, heads, channels]

    def inv_freq(self) -> np.ndarray:
        """Return the frequency of each pair: float64 (n_pairs,), radians per position."""
        if self.is_table:
            return np.array(self.factors)
        pair = np.arange(self.n_pairs)
        exponent = pair
        if self.mode == VISION:  # every section begins with the first exponent
            starts = np.cumsum((0, *self.sections))
            exponent = pair % starts[-1] - starts[self.components()]
        theta = self.base ** (-2 * exponent / self.n_dims)

        def index(rotations: float) -> float:
            turns = math.log(self.n_ctx_orig / (2 * math.pi * rotations))
            return self.n_dims * turns / (2 * math.log(self.base))

        low = max(0, math.floor(index(self.beta_fast)))
        high = min(self.n_dims - 1, math.ceil(index(self.beta_slow)))
        kept = self.ext_factor * (1 - np.clip((pair - low) / max(0.001, high - low), 0, 1))
        theta = theta * ((1 - kept) / self.factor + kept)
        return theta / np.array(self.factors) if self.factors else theta

    def components(self) -> np.ndarray:
        """Return which of the four positions rotates each pair: int (n_pairs,)."""
        if not self.mode & MROPE:
            return np.zeros(self.n_pairs, int)
        sector = np.arange(self.n_pairs) % sum(self.sections)
        if self.mode == IMROPE:
            limits = 3 * np.array(self.sections)[sector % 3]
            return np.where(sector < limits, sector % 3, 3)
        return np.searchsorted(np.cumsum(self.sections), sector, side="right")

    def expected(self) -> np.ndarray:
        """Return the output by the reference: float64, self.shape."""
        positions = np.array(self.positions, np.float64).reshape(-1, self.n_tokens)
        angles = positions[self.components()].T * self.inv_freq()  # tokens x pairs
        magnitude = self.attn_factor
        if self.ext_factor:
            magnitude *= 1 + 0.1 * math.log(self.factor)
        cosines = (magnitude * np.cos(angles))[None, :, None, :]
        sines = (magnitude * np.sin(angles) * (1 if self.is_forward else -1))[None, :, None, :]
        first = self.n_offs + np.arange(self.n_pairs) * (2 if self.mode == NORMAL else 1)
        second = first + (1 if self.mode == NORMAL else self.n_pairs)
        x = self.input()
        y = x.copy()
        y[..., first] = x[..., first] * cosines - x[..., second] * sines
        y[..., second] = x[..., first] * sines + x[..., second] * cosines
        return y

    def but(self, **changes) -> Request:
        """Return this request with other values."""
        return replace(self, **changes)


def compute(
    program: Path, requests: list[Request], n_copies: int = 1, variables: dict[str, str] | None = None
) -> list[list[np.ndarray]]:
    """Return the results of each of `n_copies` threads of the host, which compute all requests in order."""
    environment = os.environ | (variables or {})
    command = [program, str(n_copies)]
    done = subprocess.run(command, input=text_of(requests), capture_output=True, check=True, env=environment)
    values = np.frombuffer(done.stdout, np.float32)
    sizes = [math.prod(request.shape) for request in requests]
    assert len(values) == n_copies * sum(sizes)
    parts = np.split(values, np.cumsum(sizes * n_copies)[:-1])
    results = [part.reshape(r.shape) for part, r in zip(parts, requests * n_copies, strict=True)]
    return [results[k * len(requests) : (k + 1) * len(requests)] for k in range(n_copies)]


def peak_memory(program: Path, requests: list[Request]) -> int:
    """Return the peak of the program's resident memory in bytes."""
    command, pipe = [program, "1"], subprocess.PIPE
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc then returns freed memory
    with subprocess.Popen(command, stdin=pipe, stdout=subprocess.DEVNULL, env=environment) as process:
        process.stdin.write(text_of(requests))
        process.stdin.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


def text_of(requests: list[Request]) -> bytes:
    return "\n".join(request.line() for request in requests).encode()


def worst_error(got: np.ndarray, request: Request) -> float:
    """Return the largest difference of a channel, relative to the largest value that a rotation can give."""
    size = np.abs(request.input()).max() * max(1.0, request.attn_factor)
    return float(np.abs(got - request.expected()).max() / size)


def check(program: Path, requests: list[Request], n_copies: int = 1) -> None:
    """Compare the program's results with the reference."""
    for results in compute(program, requests, n_copies):
        for got, request in zip(results, requests, strict=True):
            error = worst_error(got, request)
            assert error <= (HALF if request.is_f16 else EXACT), (error, request)


def some_positions(generator: np.random.Generator, mode: int, n_tokens: int) -> tuple[int, ...]:
    n = n_tokens * (4 if mode & MROPE else 1)
    reach = int(generator.choice([8, 4096, 2**20, 2**31 - 1]))
    positions = generator.integers(-reach - 1, reach + 1, n)
    return tuple(positions.tolist())


def any_request(generator: np.random.Generator) -> Request:
    """Return a random request."""
    pick = generator.choice
    mode = int(pick(list(MODES.values())))
    n_dims = 2 * int(pick([1, 3, 5, 16, 17, 23, 32, 40, 48, 63, 64, 65, 97, 113, 128]))
    rest = 0 if mode == VISION else 2 * int(pick([0, 0, 1, 8, 33]))
    n_all = 2 * n_dims if mode == VISION else n_dims + rest
    n_pairs = n_dims if mode == VISION else n_dims // 2
    if mode == VISION:
        half, quarter = n_dims // 2, n_dims // 4
        sections = ((half + 1, half - 1, 0, 0), (half, half, half, half), (quarter + 1, quarter + 2, 2, 1))
        sections = sections[int(pick([0, 1, 2])) if n_dims > 2 else 1]
    else:
        n_sectors = min(n_pairs, int(pick([7, 24, 64])))
        height, width, extra = (int(n) for n in generator.multinomial(n_sectors - 1, [0.25] * 4)[:3])
        sections = (n_sectors - height - width - extra, height, width, extra)
    is_forward = bool(pick([True, True, False]))
    factors = tuple(generator.uniform(0.5, 2, n_pairs).astype(np.float32).tolist()) if pick([0, 1]) else ()
    return Request(
        some_positions(generator, mode, int(pick([1, 2, 3, 7, 20]))),
        mode=mode,
        n_dims=n_dims,
        n_all=n_all,
        n_heads=int(pick([1, 2, 7])),
        n_batches=int(pick([1, 1, 3])),
        n_offs=2 * int(generator.integers(0, rest // 2 + 1)),
        n_pad=int(pick([0, 0, 1, 3])),
        n_threads=int(pick([1, 1, 2, 3, 5])),
        is_f16=bool(pick([False, False, True])),
        is_forward=is_forward,
        is_inplace=is_forward and bool(pick([True, False])),
        factors=factors,
        sections=sections if mode & MROPE else (0, 0, 0, 0),
        n_ctx_orig=int(pick([512, 8192])),
        base=float(pick([100.0, 10000.0, 5e5])),
        factor=float(pick([1.0, 4.0, 7.0])),
        ext_factor=float(pick([0.0, 1.0, 0.75])),
        attn_factor=float(pick([1.0, 1.25])),
        beta_fast=float(pick([32.0, 8.0])),
        beta_slow=float(pick([1.0, 2.0])),
    )


POSITIONS = tuple(range(1000, 1009))
FACTORS = tuple(1 + i / 32 for i in range(32))
ONE = Request(POSITIONS, factor=4.0, ext_factor=1.0, factors=FACTORS)
MANY = ONE.but(mode=MROPE, positions=tuple(range(5, 41)), sections=(8, 8, 8, 8))
TABLE = Request(POSITIONS, factors=tuple(1.0 / (1 + i) for i in range(32)), is_table=True)
# each value that changes a rotation, one at a time: (request, the change)
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
    "vision's sections": (
        MANY.but(mode=VISION, n_dims=32, factors=(), sections=(16, 16, 0, 0)),
        {"sections": (12, 20, 0, 0)},
    ),
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
