"""Models and scalings for the tests of RopeScaling: examples, and strategies of hypothesis."""

import math

import numpy as np
import reference
from hypothesis import settings
from hypothesis import strategies as st

from yarn_gguf.rope.scaling import RAMPS, RopeScaling

# without a deadline, since a busy machine makes no test fail
often = settings(max_examples=100, deadline=None)
sometimes = settings(max_examples=50, deadline=None)

LLAMA_2 = {"dim": 128, "rope_theta": 10000.0}
YARN_LLAMA_2 = RopeScaling("yarn", 16.0, 4096)

# the values that each method requires, for 128 rotary dimensions
NEEDED = {
    "none": {},
    "linear": {},
    "ntk": {},
    "by-parts": {"original_max_position_embeddings": 4096},
    "yarn": {"original_max_position_embeddings": 4096},
    "llama3": {"original_max_position_embeddings": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {
        "original_max_position_embeddings": 4096,
        "short_factor": (1.0,) * 64,
        "long_factor": (1.0,) * 64,
    },
    "explicit": {"inv_freq": tuple(10000.0 ** (-i / 64) for i in range(64))},
}


def make(method, **changes):
    return RopeScaling(method, **{**NEEDED[method], **changes})


# Strategies: models and scalings in the range of real ones, and well beyond it.

dims = st.integers(1, 128).map(lambda half: 2 * half)
bases = st.floats(500.0, 1e7)
factors = st.one_of(st.just(1.0), st.floats(1.0, 64.0), st.integers(1, 64))
contexts = st.integers(16, 1_000_000)
beta_slows = st.floats(0.25, 4.0)
beta_ratios = st.floats(4.0, 64.0)


@st.composite
def models(draw, min_dim=2):
    return {"dim": draw(dims.filter(lambda dim: dim >= min_dim)), "rope_theta": draw(bases)}


@st.composite
def by_parts_scalings(draw, method=None, ramp=None):
    beta_slow = draw(beta_slows)
    return RopeScaling(
        method or draw(st.sampled_from(("by-parts", "yarn"))),
        draw(factors),
        draw(contexts),
        beta_fast=beta_slow * draw(beta_ratios),
        beta_slow=beta_slow,
        ramp=ramp or draw(st.sampled_from(RAMPS)),
        truncate=draw(st.booleans()),
    )


def by_parts_cases(method=None, ramp=None):
    """Draw a model, and a scaling of it whose ramp does not end before it begins."""
    return st.tuples(models(), by_parts_scalings(method, ramp)).filter(lambda case: not is_crossed(*case))


def index_bounds(model, scaling):
    return tuple(
        reference.index_of_rotations(n, *model.values(), scaling.original_max_position_embeddings)
        for n in (scaling.beta_fast, scaling.beta_slow)
    )


def is_crossed(model, scaling):
    low, high = index_bounds(model, scaling)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    return scaling.ramp == "index" and max(low, 0) > min(high, model["dim"] - 1)


@st.composite
def llama3_scalings(draw):
    low = draw(st.floats(0.25, 8.0))
    high = low * draw(st.floats(2.0, 16.0))
    return RopeScaling("llama3", draw(factors), draw(contexts), low_freq_factor=low, high_freq_factor=high)


@st.composite
def longrope_cases(draw):
    """Draw a model, a longrope scaling of it, and a sequence length within or beyond the original context."""
    model = draw(models())
    half = model["dim"] // 2
    context = draw(contexts)
    short, long = (  # in separate ranges, so that a test sees which list was used
        tuple(draw(st.lists(st.floats(*bounds), min_size=half, max_size=half)))
        for bounds in ((0.5, 4.0), (4.5, 64.0))
    )
    scaling = RopeScaling("longrope", draw(factors), context, short_factor=short, long_factor=long)
    seq_len = draw(st.sampled_from((1, context - 1, context, context + 1, 8 * context)))
    return model, scaling, seq_len


def assert_same(actual, expected, rtol=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=0)
