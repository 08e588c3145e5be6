"""Values and models that RopeScaling refuses, by the name of the value."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scalings import LLAMA_2, NEEDED, make

from yarn_gguf.errors import RopeScalingError, YarnGGUFError
from yarn_gguf.rope.scaling import METHODS, RAMPS, RopeScaling

NAN, INF = math.nan, math.inf
NOT_POSITIVE = [NAN, INF, -INF, "4", True, False, [4.0], {}, 1j, 0, 0.0, -1, -0.5, 10**400, 1e300, 1e-300]
NOT_TEXT = [None, True, 1, 1.0, "", "YaRN", "dynamic", "index ", ["yarn"]]

REFUSED = [
    *((name, "yarn", value) for name in ("method", "ramp") for value in NOT_TEXT),
    *(("truncate", "yarn", value) for value in (None, 0, 1, 1.0, "false", NAN)),
    *(("factor", "yarn", value) for value in (None, 0.5, 0.999999, *NOT_POSITIVE)),
    *(("beta_slow", "yarn", value) for value in (None, *NOT_POSITIVE)),
    *(("beta_fast", "yarn", value) for value in (None, 1, 1.0, 0.5, *NOT_POSITIVE)),
    *(
        (name, "yarn", value)
        for name in ("attention_factor", "mscale", "mscale_all_dim")
        for value in NOT_POSITIVE
    ),
    *(
        ("original_max_position_embeddings", method, value)
        for method in ("none", "yarn", "llama3", "longrope")
        for value in (4096.0, "4096", *NOT_POSITIVE)
    ),
    ("original_max_position_embeddings", "longrope", 1),
    *(("low_freq_factor", "llama3", value) for value in (None, *NOT_POSITIVE)),
    *(("high_freq_factor", "llama3", value) for value in (None, 1.0, 0.5, *NOT_POSITIVE)),
    *(
        (name, "longrope", value)
        for name in ("short_factor", "long_factor")
        for value in (None, (), [1.0] * 64, "1.0", 1.0, *((1.0, bad) for bad in NOT_POSITIVE), (1.0, None))
    ),
]


@pytest.mark.parametrize("name, method, value", REFUSED, ids=lambda value: repr(value)[:20])
def test_a_bad_value_is_refused_by_its_name(name, method, value):
    values = {"method": method, **NEEDED[method], name: value}
    with pytest.raises(RopeScalingError) as caught:
        RopeScaling(**values)
    message = str(caught.value)
    assert message.startswith(f"rope scaling {name} must be ")
    assert message.endswith(f"got {value!r}")


@pytest.mark.parametrize("beta_fast, beta_slow", [(1.0, 32.0), (4.0, 4.0), (1, 1)])
def test_beta_fast_must_exceed_beta_slow(beta_fast, beta_slow):
    with pytest.raises(RopeScalingError, match=rf"beta_fast must be .* {beta_slow}, got {beta_fast}"):
        RopeScaling("yarn", 4.0, 4096, beta_fast=beta_fast, beta_slow=beta_slow)


def test_an_error_shows_the_fix():
    with pytest.raises(RopeScalingError, match=r"^rope scaling factor must be a number >= 1, got 0\.5$"):
        RopeScaling("linear", 0.5)
    with pytest.raises(RopeScalingError, match=r"method must be one of none, linear, ntk, .* got 'dynamic'"):
        RopeScaling("dynamic")


def test_a_rope_scaling_error_is_a_value_error_of_this_package():
    assert issubclass(RopeScalingError, ValueError)
    assert issubclass(RopeScalingError, YarnGGUFError)


BAD_MODELS = [
    *(("dim", value) for value in (127, 1, 0, -2, 64.0, NAN, "128", None, True, [128])),
    *(("rope_theta", value) for value in (1, 1.0, 0.5, 0, -1, NAN, INF, 10**400, "1e4", None, True)),
]


@pytest.mark.parametrize("what", ["frequencies", "interpolation"])
@pytest.mark.parametrize("method", ["none", "yarn", "ntk"])
@pytest.mark.parametrize("name, value", BAD_MODELS, ids=lambda value: repr(value)[:20])
def test_a_bad_dimension_or_base_is_refused_by_its_name(what, method, name, value):
    with pytest.raises(RopeScalingError, match=rf"^rope scaling {name} must be .*got "):
        getattr(make(method), what)(**{**LLAMA_2, name: value})


@pytest.mark.parametrize("method", ["by-parts", "yarn", "llama3", "longrope"])
def test_a_missing_original_context_is_named_where_it_is_needed(method):
    scaling = make(method, factor=4.0, original_max_position_embeddings=None)
    expected = rf"original_max_position_embeddings must be .*\({method} needs it\), got None"
    uses = [lambda: scaling.frequencies(**LLAMA_2, seq_len=1), lambda: scaling.interpolation(**LLAMA_2)]
    if method == "longrope":
        uses.append(scaling.temperature)
    for use in uses:
        with pytest.raises(RopeScalingError, match=expected):
            use()


@pytest.mark.parametrize("method", ["none", "linear", "ntk"])
def test_an_original_context_is_not_asked_for_where_it_is_not_needed(method):
    assert make(method, factor=4.0).frequencies(**LLAMA_2).attention_factor == 1


@pytest.mark.parametrize("count", [1, 63, 65, 128])
@pytest.mark.parametrize(
    "name, seq_len", [("short_factor", 4096), ("long_factor", 4097), ("long_factor", None)]
)
def test_a_longrope_list_of_the_wrong_length_is_refused(name, seq_len, count):
    scaling = make("longrope", **{name: (1.0,) * count})
    expected = f"{name} must be 64 numbers for 128 rotary dimensions, got '{count} numbers'"
    with pytest.raises(RopeScalingError, match=expected):
        scaling.frequencies(**LLAMA_2, seq_len=seq_len)


def test_ntk_is_refused_for_two_rotary_dimensions():
    with pytest.raises(RopeScalingError, match=r"dim must be more than 2 rotary dimensions.* got 2"):
        RopeScaling("ntk", 4.0).frequencies(2, 10000.0)


# values that a hostile config.json or GGUF could hold: any number, and values that are no numbers
wild = st.one_of(
    st.floats(),
    st.floats(1, 1e38),
    st.integers(),
    st.integers(1, 10**6),
    st.sampled_from((None, True, "1", 2.0**-126, 1.1754942e-38, 3.4028234e38, 10**400, 1 + 2**-52)),
)
wild_lists = st.one_of(wild, st.lists(st.floats(1e-37, 1e38), min_size=4, max_size=4).map(tuple))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_value_is_refused_or_gives_finite_positive_frequencies(data):
    def draw(name):
        return data.draw(st.one_of(st.floats(1, 1e38, exclude_min=True), wild), label=name)

    method = data.draw(st.sampled_from(METHODS))
    values = {
        "factor": draw("factor"),
        "original_max_position_embeddings": data.draw(st.one_of(wild, st.integers(1, 10**38))),
        "ramp": data.draw(st.sampled_from(RAMPS)),
        "truncate": data.draw(st.booleans()),
    }
    extras = {
        "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"),
        "by-parts": ("beta_fast", "beta_slow"),
        "llama3": ("low_freq_factor", "high_freq_factor"),
    }.get(method, ())
    # each is wild only sometimes, since otherwise the checks would refuse every example
    for name in extras:
        if data.draw(st.booleans()):
            values[name] = draw(name)
        elif name in NEEDED[method]:
            values[name] = NEEDED[method][name]
    if method == "longrope":
        values.update(short_factor=data.draw(wild_lists), long_factor=data.draw(wild_lists))
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            result = RopeScaling(method, **values).frequencies(8, draw("rope_theta"))
    except RopeScalingError:
        return
    assert np.all(np.isfinite(result.inv_freq)) and np.all(result.inv_freq > 0)
    assert 0 < result.attention_factor < math.inf
