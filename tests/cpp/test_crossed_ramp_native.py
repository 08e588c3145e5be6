"""An index ramp that ends before it begins is refused by the library, whoever asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import random_gguf
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from yarn_gguf import DynamicScaling, ModelLoadError, RopeScaling, RopeScalingError, extend
from yarn_gguf.gguf.edit import change_keys
from yarn_gguf.gguf.header import ValueType, key_value, read_header
from yarn_gguf.native.scaling import set_dynamic_scaling
from yarn_gguf.run.llama import Llama

BASE = 10000.0
YARN = {"rope_scaling_type": 2, "rope_freq_scale": 0.25}  # arguments of the caller
ENDS_BEFORE_IT_BEGINS = r"makes a ramp that ends \(at dimension -?\d+\) before it begins \(at \d+\)"
REMEDY = "give the context that the model was trained with, in tokens, and a beta_fast above beta_slow"
TOKENS = [3, 7, 1, 5]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A llama file without scaling: 32 rotary dimensions, base 10000, trained on 8192 tokens."""
    return random_gguf.llama(tmp_path_factory.mktemp("model") / "llama.gguf")


@pytest.fixture(scope="module")
def unscaled(model: Path) -> Iterator[Llama]:
    with closing(Llama(model, rope_scaling="none", verbose=False)) as llama:
        yield llama


def file_with(source: Path, target: Path, **keys: str | int | float) -> Path:
    """A copy of `source` with more keys; "." is written "__"."""
    types = {str: ValueType.STRING, int: ValueType.UINT32, float: ValueType.FLOAT32}
    named = {f"llama.{suffix.replace('__', '.')}": value for suffix, value in keys.items()}
    written = [key_value(name, types[type(value)], value) for name, value in named.items()]
    change_keys(read_header(source), written, set(named), target)
    return target


def yarn_file(source: Path, target: Path, context: int, **keys: str | int | float) -> Path:
    asked = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    return file_with(source, target, **asked, rope__scaling__original_context_length=context, **keys)


def read(path: Path, **arguments) -> None:
    with closing(Llama(path, verbose=False, **arguments)) as llama:
        list(llama.read_logits(TOKENS))


# ---- the file's own scaling --------------------------------------------------------------------------


@pytest.mark.parametrize(("context", "base"), [(1, BASE), (100_000_000, 500.0)], ids=["short", "long"])
def test_the_file_s_ramp_is_refused_at_load_by_key_and_value(model, tmp_path, context, base):
    path = yarn_file(model, tmp_path / "crossed.gguf", context, rope__freq_base=base)
    named = rf"llama\.rope\.scaling\.original_context_length = {context}"
    values = r"llama\.rope\.scaling\.yarn_beta_fast = 32, llama\.rope\.scaling\.yarn_beta_slow = 1, "
    model_s = rf"llama\.rope\.freq_base = {base:g} and 32 rotary dimensions"
    with pytest.raises(
        ModelLoadError, match=rf"{named} {ENDS_BEFORE_IT_BEGINS}, with {values}{model_s}: {REMEDY}"
    ):
        Llama(path, verbose=False)


def test_without_an_original_context_the_trained_one_is_named(model, tmp_path):
    keys = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "context_length": 1}
    path = file_with(model, tmp_path / "crossed.gguf", **keys)
    with pytest.raises(ModelLoadError, match=rf"llama\.context_length = 1 {ENDS_BEFORE_IT_BEGINS}"):
        Llama(path, verbose=False)


def test_the_file_s_betas_count(model, tmp_path):
    context = 16  # the ramp begins at 0, and ends at 2 with the default beta_slow
    read(yarn_file(model, tmp_path / "sound.gguf", context))
    crossed = yarn_file(model, tmp_path / "crossed.gguf", context, rope__scaling__yarn_beta_slow=8.0)
    with pytest.raises(ModelLoadError, match=rf"{ENDS_BEFORE_IT_BEGINS}.*yarn_beta_slow = 8"):
        Llama(crossed, verbose=False)


def test_a_small_original_context_whose_ramp_is_sound_is_read(model, tmp_path):
    read(yarn_file(model, tmp_path / "sound.gguf", 6))  # both bounds are 0: a step


def test_without_blending_a_file_has_no_ramp(model, tmp_path):
    read(yarn_file(model, tmp_path / "linear.gguf", 1, rope__scaling__yarn_ext_factor=0.0))


def test_a_table_takes_the_place_of_the_file_s_ramp_but_not_of_the_caller_s(model, tmp_path):
    path = extend(model, RopeScaling("yarn", 4.0, 1, ramp="rotations"), output=tmp_path / "table.gguf").path
    read(path)
    with pytest.raises(ModelLoadError, match=f"yarn_orig_ctx = 1 {ENDS_BEFORE_IT_BEGINS}"):
        Llama(path, verbose=False, **YARN)


# ---- the caller's ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"yarn_orig_ctx": 1}, "yarn_orig_ctx = 1 "),
        ({"yarn_orig_ctx": 1, "rope_freq_scale": 1.0}, "yarn_orig_ctx = 1 "),
        ({"yarn_beta_fast": 1.0, "yarn_beta_slow": 32.0}, "yarn_beta_fast = 1, yarn_beta_slow = 32, "),
        ({"yarn_orig_ctx": 1_000_000, "rope_freq_base": 4.0}, "rope_freq_base = 4 "),
    ],
    ids=["context", "factor 1", "betas", "base"],
)
def test_the_caller_s_ramp_is_refused_by_parameter_and_value(model, arguments, shown):
    with pytest.raises(ModelLoadError, match=rf"{ENDS_BEFORE_IT_BEGINS}.*{REMEDY}") as caught:
        Llama(model, verbose=False, **YARN | arguments)
    assert shown in str(caught.value)


@pytest.mark.parametrize("method", ["yarn", "by-parts"])
def test_a_rope_scaling_with_such_a_ramp_is_refused(model, method):
    """In Python, before the library is asked."""
    with pytest.raises(
        RopeScalingError, match=r"original_max_position_embeddings must be .*before it begins"
    ):
        Llama(model, rope_scaling=RopeScaling(method, 4.0, 1), verbose=False)


def test_a_caller_s_small_context_whose_ramp_is_sound_is_taken(model):
    read(model, **YARN, yarn_orig_ctx=6)


# ---- dynamic -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 4.0])
@pytest.mark.parametrize("method", ["yarn", "by-parts"])
def test_a_dynamic_ramp_is_refused_at_any_factor(unscaled, method, factor):
    dynamic = DynamicScaling.of(method, original_max_position_embeddings=1, factor=factor)
    with pytest.raises(RopeScalingError, match=rf"n_ctx_orig = 1 {ENDS_BEFORE_IT_BEGINS}.*{REMEDY}"):
        set_dynamic_scaling(unscaled._ctx.ctx, dynamic)


@pytest.mark.parametrize("options", [{"method": "ntk"}, {"method": "linear"}, {"ramp": "rotations"}], ids=str)
def test_a_dynamic_scaling_without_an_index_ramp_is_taken(unscaled, options):
    dynamic = DynamicScaling.of(**options, original_max_position_embeddings=1)
    set_dynamic_scaling(unscaled._ctx.ctx, dynamic)


def refuses(act, *arguments) -> bool:
    try:
        act(*arguments)
    except RopeScalingError:
        return True
    return False


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    context=st.one_of(st.integers(1, 64), st.integers(1, 2**32 - 1)),
    slow=st.integers(1, 64).map(lambda n: n / 4),
    ratio=st.sampled_from([1.5, 2.0, 32.0]),
    truncate=st.booleans(),
)
@example(context=1, slow=1.0, ratio=32.0, truncate=True)
@example(context=6, slow=1.0, ratio=32.0, truncate=True)
@example(context=6, slow=1.0, ratio=32.0, truncate=False)
def test_the_library_refuses_the_ramps_that_python_refuses(unscaled, context, slow, ratio, truncate):
    options = {"beta_fast": slow * ratio, "beta_slow": slow, "truncate": truncate}
    static = RopeScaling("yarn", 4.0, context, **options)
    dynamic = DynamicScaling.of(original_max_position_embeddings=context, **options)
    expected = refuses(static.frequencies, random_gguf.HEAD, BASE)
    assert refuses(set_dynamic_scaling, unscaled._ctx.ctx, dynamic) == expected
