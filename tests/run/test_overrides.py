"""kv_overrides: the scaling is worked out from them, and none is ignored.

The witness is a file that has the values itself.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_gguf
from libraries import relative_error
from reading import read

from yarn_gguf import ModelLoadError, RopeScaling
from yarn_gguf.run.llama import Llama

TOKENS = [*range(3, 103)]
OTHER = {"rope.freq_base": 5e5, "context_length": 1024, "rope.scaling.original_context_length": 512}
YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 512,
    "rope.scaling.yarn_attn_factor": 1.5,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return random_gguf.llama(tmp_path_factory.mktemp("model") / "model.gguf")


def overrides(values: dict[str, Any]) -> dict[str, Any]:
    return {f"llama.{name}": value for name, value in values.items()}


def logits(path: Path, **kwargs: Any) -> np.ndarray:
    with closing(Llama(path, n_ctx=2048, n_threads=1, verbose=False, type_k=0, type_v=0, **kwargs)) as llama:
        return read(llama, TOKENS)


@pytest.mark.parametrize("values", [OTHER, YARN], ids=["base and contexts", "YaRN"])
@pytest.mark.parametrize(
    "scaling",
    [None, "yarn", "ntk", "dynamic-yarn", RopeScaling("yarn", 2.0, ramp="rotations")],
    ids=["the file's", "yarn", "ntk", "dynamic", "a table"],
)
def test_the_scaling_is_that_of_a_file_with_these_values(model, tmp_path, values, scaling) -> None:
    keys = {name.replace(".", "__"): value for name, value in values.items()}
    file = random_gguf.llama(tmp_path / "model.gguf", **keys)
    expected = logits(file, rope_scaling=scaling)
    got = logits(model, rope_scaling=scaling, kv_overrides=overrides(values))
    assert relative_error(got, expected) < 1e-6


def test_overrides_have_an_effect(model: Path) -> None:
    plain = logits(model)
    for values in (OTHER, YARN):
        assert relative_error(logits(model, kv_overrides=overrides(values)), plain) > 0.01


def test_a_scaling_that_is_set_later_has_the_overrides(model: Path, tmp_path: Path) -> None:
    file = random_gguf.llama(tmp_path / "m.gguf", rope__freq_base=5e5, context_length=1024)
    values = overrides({"rope.freq_base": 5e5, "context_length": 1024})
    expected = logits(file, rope_scaling="ntk")
    with closing(Llama(model, n_ctx=2048, n_threads=1, verbose=False, kv_overrides=values)) as llama:
        llama.set_rope_scaling("ntk")
        assert relative_error(read(llama, TOKENS), expected) < 1e-2  # K is float16 here


def test_a_dynamic_policy_may_be_an_override(model: Path) -> None:
    values = overrides({**YARN, "rope.scaling.dynamic": "growth"})
    del values["llama.rope.scaling.yarn_attn_factor"]  # the temperature follows the factor
    with closing(Llama(model, n_ctx=2048, n_threads=1, verbose=False, kv_overrides=values)) as llama:
        assert llama.rope_scaling.policy == "growth"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.rope.freq_base", 500000, r"is of type float in .*gguf, got 500000: write it like 8192\.0"),
        ("llama.context_length", 1024.0, "is of type int in .*: write it like 8192"),
        ("llama.context_length", True, "is of type int in"),
        ("llama.context_length", 2**40, "is no UINT32"),
        ("llama.rope.scaling.factor", 4, "llama.cpp reads a value of type float"),  # the file has no such key
        ("llama.rope.freqbase", 5e5, r"llama\.cpp reads no such key of .*: check its name"),
        ("mistral.context_length", 1024, "reads no such key"),
        ("llama.rope.freq_base", None, "must be a bool, an int, a float or a str, got None"),
    ],
)
def test_an_override_that_would_be_ignored_is_refused(
    model: Path, key: str, value: Any, message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        Llama(model, n_ctx=256, verbose=False, kv_overrides={key: value})


def test_a_list_has_no_override(tmp_path: Path) -> None:
    path = random_gguf.lfm2(tmp_path / "model.gguf")
    with pytest.raises(ModelLoadError, match="head_count_kv is a list in"):
        Llama(path, n_ctx=256, verbose=False, kv_overrides={"lfm2.attention.head_count_kv": 1})
