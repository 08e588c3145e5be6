"""llama_cpp.Llama's own rope arguments, and rope keys of a file: each has an effect, or is refused."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_gguf
from libraries import UNPATCHED, relative_error
from libraries import logits as library_logits
from reading import read

from yarn_gguf import ModelLoadError, RopeScaling, extend
from yarn_gguf.run.llama import Llama

TOKENS = [*range(3, 103)]
NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return random_gguf.llama(tmp_path_factory.mktemp("model") / "model.gguf")


def logits(path: Path, **kwargs: Any) -> np.ndarray:
    with closing(Llama(path, n_ctx=512, n_threads=1, verbose=False, type_k=0, type_v=0, **kwargs)) as llama:
        return read(llama, TOKENS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("rope_freq_base", value) for value in (NAN, INFINITE, -1.0, 0.5, 1.0)),
        *(("rope_freq_scale", value) for value in (NAN, INFINITE, -1.0, 2.0)),
        *(("yarn_ext_factor", value) for value in (NAN, INFINITE, -INFINITE, 1.5)),
        *(("yarn_attn_factor", value) for value in (NAN, INFINITE, 0.0)),
        *(("yarn_beta_fast", value) for value in (NAN, INFINITE, 0.0)),
        *(("yarn_beta_slow", value) for value in (NAN, INFINITE, 0.0)),
    ],
)
def test_a_rope_argument_that_makes_no_sense_is_refused_by_name(model: Path, name: str, value: float) -> None:
    with pytest.raises(ModelLoadError, match=rf"{name} = .*: expected"):
        Llama(model, n_ctx=256, verbose=False, **{name: value})


@pytest.mark.parametrize("method", [None, "none", "ntk"])
def test_a_factor_alone_scales_a_file_that_is_not_scaled(model, tmp_path: Path, method: str | None) -> None:
    """In every engine. Upstream ignores it in a file of type "none"."""
    path = model
    if method is not None:
        scaling = RopeScaling(method, 1.0 if method == "none" else 2.0)
        path = extend(model, scaling, output=tmp_path / "a.gguf").path
    expected = logits(path, rope_scaling_type=1, rope_freq_scale=0.25)
    assert relative_error(logits(path, rope_freq_scale=0.25), expected) < 1e-6
    assert relative_error(logits(path), expected) > 0.1
    found = library_logits(UNPATCHED, path, TOKENS, type_k=0, type_v=0, rope_freq_scale=0.25)
    assert relative_error(found, expected) < 1e-3


def test_a_factor_alone_scales_a_file_of_type_none(tmp_path: Path) -> None:
    path = random_gguf.llama(tmp_path / "model.gguf", rope__scaling__type="none")
    expected = logits(path, rope_scaling_type=1, rope_freq_scale=0.25)
    assert relative_error(logits(path, rope_freq_scale=0.25), expected) < 1e-6
    assert relative_error(logits(path), expected) > 0.1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope__freq_base": 0.0}, r"llama\.rope\.freq_base = 0, expected a number > 1"),
        ({"rope__freq_base": 1.0}, r"llama\.rope\.freq_base = 1, expected a number > 1"),
        (
            {"rope__scaling__type": "linear", "rope__scaling__factor": 0.5},
            r"factor = 0\.5, expected a number",
        ),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 0.5}, r"factor = 0\.5, expected a number"),
        ({"rope__scale_linear": 0.25}, r"scale_linear = 0\.25, expected a number >= 1"),
    ],
)
def test_a_file_with_an_unsound_rope_is_not_loaded(tmp_path: Path, keys: dict, message: str) -> None:
    path = random_gguf.llama(tmp_path / "model.gguf", **keys)
    with pytest.raises(ModelLoadError, match=message):
        Llama(path, n_ctx=256, verbose=False)


@pytest.mark.parametrize("type_", [None, "none"])
def test_a_factor_without_effect_is_loaded(model: Path, tmp_path: Path, type_: str | None) -> None:
    """llama.cpp itself writes 0 for no scaling."""
    keys = {"rope__scaling__factor": 0.0} if type_ is None else {"rope__scaling__factor": 0.5}
    types = {} if type_ is None else {"rope__scaling__type": type_}
    path = random_gguf.llama(tmp_path / "model.gguf", **keys, **types)
    assert np.array_equal(logits(path), logits(model))
