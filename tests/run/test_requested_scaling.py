"""The scaling that a caller asks for: Hugging Face's dict, a name or an object, for the model in a file.

The witness of a dict is the frequencies of transformers' ROPE_INIT_FUNCTIONS for the same dict.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_gguf
import transformers
from reading import read
from tiny_gguf import write_tiny
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from yarn_gguf import DynamicScaling, RopeScaling, RopeScalingError, extend
from yarn_gguf.rope.read import RopeModel, read_model
from yarn_gguf.rope.requested import replaced_scaling, requested_scaling, require_own_base, static_part
from yarn_gguf.run.llama import Llama

DIM, THETA, CONTEXT = 64, 100000.0, 8192  # of the model that write_tiny makes
YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LISTS = {"short_factor": [1.0 + i / 64 for i in range(32)], "long_factor": [1.0 + i for i in range(32)]}

DICTS = {
    "yarn": YARN,
    "yarn, with its base": {**YARN, "rope_theta": THETA},
    "yarn, of an original context": {**YARN, "original_max_position_embeddings": 2048},
    "yarn, betas": {**YARN, "beta_fast": 16, "beta_slow": 2},
    "yarn, temperature": {**YARN, "attention_factor": 1.25},
    "yarn, mscale": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0},
    "yarn, untruncated": {**YARN, "truncate": False},
    "yarn, a factor that is an int": {"rope_type": "yarn", "factor": 2},
    "yarn, by its old name": {"type": "yarn", "factor": 4.0},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": LLAMA_3,
    "longrope": {"rope_type": "longrope", "factor": 4.0, **LISTS},
}


@pytest.fixture
def model(tmp_path: Path) -> RopeModel:
    return read_model(write_tiny(tmp_path / "model.gguf"))


def theirs(parameters: dict[str, Any]) -> tuple[np.ndarray, float]:
    """transformers' frequencies and temperature for a model like that of write_tiny."""
    config = transformers.LlamaConfig(
        head_dim=DIM,
        max_position_embeddings=CONTEXT,
        rope_parameters={"original_max_position_embeddings": CONTEXT, "rope_theta": THETA, **parameters},
    )
    inv_freq, temperature = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](
        config, "cpu", seq_len=CONTEXT
    )
    return inv_freq.numpy(), temperature


@pytest.mark.parametrize("parameters", DICTS.values(), ids=DICTS)
def test_a_dict_of_hugging_face_gives_the_frequencies_of_transformers(model, parameters) -> None:
    before = dict(parameters)
    scaling = requested_scaling(parameters, model, 0)
    static = scaling.at(CONTEXT) if isinstance(scaling, DynamicScaling) else scaling  # LongRoPE
    got = static.frequencies(model.dim, model.rope_theta, seq_len=CONTEXT)
    inv_freq, temperature = theirs(parameters)
    np.testing.assert_allclose(got.inv_freq, inv_freq, rtol=2e-6)
    assert got.attention_factor == pytest.approx(temperature, rel=1e-9)
    assert parameters == before


def test_a_dict_without_an_original_context_has_that_of_the_file(tmp_path: Path, model) -> None:
    assert requested_scaling(YARN, model, 0) == RopeScaling("yarn", 4.0, CONTEXT)
    extended = write_tiny(tmp_path / "extended.gguf", rope__scaling__original_context_length=2048)
    assert requested_scaling(YARN, read_model(extended), 0) == RopeScaling("yarn", 4.0, 2048)
    named = {**YARN, "original_max_position_embeddings": 4096}
    assert requested_scaling(named, model, 0) == RopeScaling("yarn", 4.0, 4096)


def test_a_dict_does_not_shrink_the_rotary_part_of_the_file_again(tmp_path: Path) -> None:
    """A file counts its rotary dimensions; a checkpoint counts those of a head and a fraction of them."""
    model = read_model(write_tiny(tmp_path / "partial.gguf", rope__dimension_count=32))
    halves = {name: values[:16] for name, values in LISTS.items()}
    longrope = {"rope_type": "longrope", "factor": 4.0, **halves}
    scaling = requested_scaling({**longrope, "partial_rotary_factor": 0.5}, model, 0)
    assert scaling == requested_scaling(longrope, model, 0)
    assert scaling.scaling.short_factor == tuple(halves["short_factor"])


def test_the_type_default_asks_for_no_scaling(model) -> None:
    assert requested_scaling({"rope_type": "default"}, model, 0).method == "none"


@pytest.mark.parametrize("name", ["rope_type", "type"])
def test_the_type_dynamic_is_a_dynamic_scaling(model, name: str) -> None:
    """Its frequencies at a length are those of transformers for a text of that length."""
    scaling = requested_scaling({name: "dynamic", "factor": 2.0}, model, 0)
    assert scaling == DynamicScaling.of("ntk", original_max_position_embeddings=CONTEXT, ntk_factor=2.0)
    config = transformers.LlamaConfig(
        head_dim=DIM,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": THETA},
    )
    for length in (CONTEXT, CONTEXT + 1, 3 * CONTEXT):
        expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", seq_len=length)
        got = scaling.at(length).frequencies(DIM, THETA)
        np.testing.assert_allclose(got.inv_freq, expected.numpy(), rtol=2e-6)
        assert got.attention_factor == 1


REFUSED = {
    "no type": ({"factor": 4.0}, r"rope_scaling: rope_type is missing in \{'factor': 4\.0\}: give it"),
    "nothing": ({}, r"rope_scaling: rope_type is missing in \{\}"),
    "no factor": ({"rope_type": "yarn"}, r"rope_scaling: factor is missing in \{'rope_type': 'yarn'\}: give"),
    "no factor, dynamic": ({"rope_type": "dynamic"}, "factor is missing"),
    "an unknown key": ({**YARN, "betafast": 16}, r"rope_scaling: 'betafast' is none of attention_factor, .*"),
    "another base": (
        {**YARN, "rope_theta": 10000.0},
        r"rope_scaling: rope_theta must be the model's 100000, got 10000\.0: leave it out",
    ),
    "a base that is no number": ({**YARN, "rope_theta": "100000"}, r"rope_theta must be .*, got '100000'"),
    "an unknown type": ({"rope_type": "ntk", "factor": 4.0}, r"rope_type must be one of default, .*'ntk'"),
    "a type that is no text": ({"rope_type": 4, "factor": 4.0}, r"rope_type must be one of .*, got 4"),
    "a factor below 1": (
        {"rope_type": "yarn", "factor": 0.5},
        r"factor must be a number >= 1, got 0\.5",
    ),
    "a factor that is text": (
        {"rope_type": "linear", "factor": "4"},
        r"factor must be a number, got '4'",
    ),
    "a factor that is NaN": ({"rope_type": "yarn", "factor": float("nan")}, r"factor must be a number"),
    "a context that is no number": (
        {**YARN, "original_max_position_embeddings": "8k"},
        r"original_max_position_embeddings must be a number, got '8k'",
    ),
    "half of llama3": ({"rope_type": "llama3", "factor": 8.0}, r"low_freq_factor must be a number > 0"),
    "lists of another model": (
        {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0], "long_factor": [2.0]},
        r"short_factor must be 32 numbers for 64 rotary dimensions",
    ),
}


@pytest.mark.parametrize(("parameters", "message"), REFUSED.values(), ids=REFUSED)
def test_a_dict_that_is_wrong_is_refused_with_key_and_value(model, parameters, message: str) -> None:
    with pytest.raises(RopeScalingError, match=message) as error:
        requested_scaling(parameters, model, 0)
    assert str(error.value).startswith("rope_scaling: ")


BADLY_REFUSED = {
    "yarn, a factor of None": ({"rope_type": "yarn", "factor": None}, r"factor .*None"),
    "unknown keys of two types": ({**YARN, 1: 2, "x": 3}, "is none of attention_factor"),
    "a factor that is a dict": ({"rope_type": "yarn", "factor": {"a": 1}}, r"factor must be a single value"),
}


@pytest.mark.parametrize(("parameters", "message"), BADLY_REFUSED.values(), ids=BADLY_REFUSED)
def test_a_dict_that_is_wrong_in_a_rare_way_is_refused_too(model, parameters, message: str) -> None:
    with pytest.raises(RopeScalingError, match=message):
        requested_scaling(parameters, model, 0)


@pytest.mark.parametrize("asked", [4, 4.0, ["yarn", 4.0], ("yarn",), True, b"yarn"], ids=repr)
def test_anything_else_is_refused_with_its_value(model, asked: Any) -> None:
    message = r"rope_scaling must be a RopeScaling, a DynamicScaling, a name or Hugging Face's dict, got "
    with pytest.raises(RopeScalingError, match=message) as error:
        requested_scaling(asked, model, CONTEXT)
    assert str(error.value).endswith(f"got {asked!r}")


# ---- names and objects ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "ntk", "by-parts", "yarn"])
@pytest.mark.parametrize(("n_ctx", "factor"), [(32768, 4.0), (12288, 1.5), (4096, 1.0)])
def test_a_name_takes_the_factor_that_makes_the_context_fit(model, method, n_ctx, factor) -> None:
    assert requested_scaling(method, model, n_ctx) == RopeScaling(method, factor, CONTEXT)


def test_a_name_needs_a_context(model) -> None:
    with pytest.raises(
        RopeScalingError, match=r"rope_scaling='yarn' takes its factor from n_ctx: give n_ctx"
    ):
        requested_scaling("yarn", model, 0)


def test_the_name_none_asks_for_no_scaling(model) -> None:
    expected = RopeScaling("none", original_max_position_embeddings=CONTEXT)
    assert requested_scaling("none", model, 0) == expected


def test_a_dynamic_name_needs_no_context(model) -> None:
    expected = DynamicScaling.of("ntk", original_max_position_embeddings=CONTEXT)
    assert requested_scaling("dynamic-ntk", model, 0) == expected


@pytest.mark.parametrize("name", ["yarrn", "dynamic-yarrn", "", "dynamic"])
def test_an_unknown_name_is_refused(model, name: str) -> None:
    with pytest.raises(RopeScalingError, match=r"must be one of .*, got "):
        requested_scaling(name, model, CONTEXT)


def test_an_object_takes_the_original_context_of_the_file_unless_it_names_one(model) -> None:
    assert requested_scaling(RopeScaling("yarn", 2.0), model, 0) == RopeScaling("yarn", 2.0, CONTEXT)
    assert requested_scaling(RopeScaling("yarn", 2.0, 512), model, 0) == RopeScaling("yarn", 2.0, 512)
    dynamic = requested_scaling(DynamicScaling(), model, 0)
    assert dynamic.original_max_position_embeddings == CONTEXT


def test_a_context_under_dynamic_scaling_is_made_without_a_static_one() -> None:
    assert static_part(RopeScaling("yarn", 2.0)) == RopeScaling("yarn", 2.0)
    assert static_part(DynamicScaling()) == RopeScaling("none")


def test_another_scaling_replaces_the_one_that_a_model_was_trained_with(tmp_path: Path) -> None:
    trained = RopeScaling("llama3", 8.0, CONTEXT, low_freq_factor=1.0, high_freq_factor=4.0)
    path = extend(write_tiny(tmp_path / "a.gguf"), trained, output=tmp_path / "trained.gguf").path
    for scaling in (RopeScaling("yarn", 2.0), RopeScaling("none"), DynamicScaling()):
        assert replaced_scaling(read_model(path), scaling) == trained
    assert replaced_scaling(read_model(path), trained) is None
    assert replaced_scaling(read_model(tmp_path / "a.gguf"), DynamicScaling()) is None


@pytest.mark.parametrize(
    "asked", [{**YARN, "original_max_position_embeddings": 1}, RopeScaling("yarn", 4.0, 1)]
)
def test_a_scaling_that_does_not_suit_the_model_is_refused(model, asked: Any) -> None:
    """With one token of original context, the ramp of YaRN lies outside of all dimensions."""
    with pytest.raises(RopeScalingError, match="original_max_position_embeddings must be one with which"):
        requested_scaling(asked, model, 0)


@pytest.mark.parametrize(("base", "is_own"), [(0.0, True), (THETA, True), (5e5, False)])
def test_dynamic_scaling_needs_the_base_of_the_model(model, base: float, is_own: bool) -> None:
    require_own_base(RopeScaling("yarn", 2.0), model, base)
    if is_own:
        require_own_base(DynamicScaling(), model, base)
        return
    with pytest.raises(RopeScalingError, match=r"a rotary base of 500000, where the model's is 100000: open"):
        require_own_base(DynamicScaling(), model, base)


# ---- a Llama --------------------------------------------------------------------------------------

TOKENS = [*range(3, 43)]


@pytest.fixture(scope="module")
def random_model(tmp_path_factory) -> Path:
    return random_gguf.llama(tmp_path_factory.mktemp("model") / "model.gguf")


def opened(path: Path, rope_scaling: Any) -> Llama:
    return Llama(path, n_ctx=256, n_threads=1, verbose=False, rope_scaling=rope_scaling)


def logits(path: Path, rope_scaling: Any) -> np.ndarray:
    with closing(opened(path, rope_scaling)) as llama:
        return read(llama, TOKENS)


@pytest.mark.parametrize(
    ("parameters", "scaling"),
    [
        (YARN, RopeScaling("yarn", 4.0, random_gguf.CONTEXT)),
        ({"type": "linear", "factor": 2.0}, RopeScaling("linear", 2.0, random_gguf.CONTEXT)),
        (LLAMA_3, RopeScaling("llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0)),
    ],
    ids=["yarn", "linear", "llama3"],
)
def test_a_llama_computes_under_the_scaling_of_a_dict(random_model, parameters, scaling) -> None:
    with closing(opened(random_model, parameters)) as llama:
        assert llama.rope_scaling == scaling
    got = logits(random_model, parameters)
    assert np.array_equal(got, logits(random_model, scaling))
    assert not np.allclose(got, logits(random_model, "none"))


def test_a_llama_takes_the_type_dynamic(random_model) -> None:
    with closing(opened(random_model, {"rope_type": "dynamic", "factor": 2.0})) as llama:
        assert llama.rope_scaling == DynamicScaling.of(
            "ntk", original_max_position_embeddings=random_gguf.CONTEXT, ntk_factor=2.0
        )
        assert llama.dynamic_state.factor == 1


def test_a_llama_changes_to_the_scaling_of_a_dict(random_model) -> None:
    expected = logits(random_model, YARN)
    with closing(opened(random_model, "none")) as llama:
        llama.set_rope_scaling({**YARN, "rope_theta": 10000.0})
        assert np.array_equal(next(llama.read_logits(TOKENS)), expected)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rope_type": "yarn"}, "factor is missing"),
        ({**YARN, "rope_theta": 5e5}, "rope_theta must be the model's 10000"),
        (["yarn"], "rope_scaling must be a RopeScaling"),
    ],
    ids=["no factor", "another base", "a list"],
)
def test_a_llama_refuses_a_value_that_makes_no_scaling(random_model, asked: Any, message: str) -> None:
    with pytest.raises(RopeScalingError, match=message):
        opened(random_model, asked)
