"""Tensors of rope factors, as upstream's converter writes them: the caller's scaling replaces these.

The witness is the same model without the tensors, and for the file's own scaling the unpatched library.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_gguf
import reference
from libraries import UNPATCHED, relative_error
from libraries import logits as library_logits
from reading import read

from yarn_gguf import DynamicScaling, RopeScaling, RopeScalingError, extend, scaling_from_gguf
from yarn_gguf.cli import main
from yarn_gguf.errors import GGUFError, ModelLoadError, ReplacedScalingWarning
from yarn_gguf.rope.read import read_model
from yarn_gguf.run.llama import Llama

DIM, THETA, L = random_gguf.HEAD, 10000.0, 1024
TOKENS = np.random.default_rng(2).integers(3, random_gguf.VOCABULARY, 300).tolist()
LLAMA_3 = RopeScaling("llama3", 8.0, L, low_freq_factor=1.0, high_freq_factor=4.0)
LONGROPE = RopeScaling(
    "longrope",
    8.0,
    L,
    short_factor=tuple(np.linspace(1, 2, DIM // 2, dtype=np.float32).tolist()),
    long_factor=tuple(np.linspace(1, 30, DIM // 2, dtype=np.float32).tolist()),
)
ASKED = {
    "none": RopeScaling("none"),
    "linear": RopeScaling("linear", 4.0, L),
    "ntk": RopeScaling("ntk", 4.0, L),
    "yarn": RopeScaling("yarn", 4.0, L),
    "yarn by rotations": RopeScaling("yarn", 4.0, L, ramp="rotations"),
    "explicit": RopeScaling("explicit", 4.0, L, inv_freq=tuple(np.geomspace(1, 1e-5, DIM // 2).tolist())),
    "dynamic": DynamicScaling.of("yarn", original_max_position_embeddings=200, policy="exact"),
}

pytestmark = pytest.mark.filterwarnings("ignore::yarn_gguf.errors.ReplacedScalingWarning")


def divisors(scaling: RopeScaling) -> np.ndarray:
    plain = np.array(reference.none_frequencies(DIM, THETA))
    return (plain / scaling.frequencies(DIM, THETA).inv_freq).astype(np.float32)


def with_llama_3(path: Path) -> Path:
    return random_gguf.llama(path, tensors={"rope_freqs.weight": divisors(LLAMA_3)})


def with_longrope(path: Path) -> Path:
    lists = {"long": LONGROPE.long_factor, "short": LONGROPE.short_factor}
    return random_gguf.llama(
        path,
        tensors={f"rope_factors_{name}.weight": np.array(each, np.float32) for name, each in lists.items()},
        rope__scaling__type="longrope",
        rope__scaling__original_context_length=L,
        rope__scaling__attn_factor=LONGROPE.temperature(),
    )


@pytest.fixture(scope="module", params=[with_llama_3, with_longrope], ids=["Llama 3", "LongRoPE"])
def scaled(request, tmp_path_factory) -> Path:
    """A model whose tensors scale it."""
    return request.param(tmp_path_factory.mktemp("model") / "scaled.gguf")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The same weights without such tensors."""
    return random_gguf.llama(
        tmp_path_factory.mktemp("model") / "plain.gguf", rope__scaling__original_context_length=L
    )


def logits(path: Path, scaling: Any = None, **kwargs: Any) -> np.ndarray:
    settings = {"n_ctx": 512, "n_threads": 1, "verbose": False, "type_k": 0, "type_v": 0, **kwargs}
    with closing(Llama(path, rope_scaling=scaling, **settings)) as llama:
        return read(llama, TOKENS)


def test_the_tensor_of_llama_3_is_read_as_llama_3(tmp_path: Path) -> None:
    model = read_model(with_llama_3(tmp_path / "model.gguf"))
    assert model.scaling == LLAMA_3
    assert model.original_context == L


def test_other_factors_are_read_as_a_table(tmp_path: Path) -> None:
    factors = np.linspace(1, 5, DIM // 2, dtype=np.float32)
    path = random_gguf.llama(tmp_path / "model.gguf", tensors={"rope_freqs.weight": factors})
    scaling = scaling_from_gguf(path)
    assert (scaling.method, scaling.factor) == ("explicit", 5.0)
    plain = np.array(reference.none_frequencies(DIM, THETA))
    assert np.allclose(scaling.inv_freq, plain / factors, rtol=1e-6)


def test_keys_and_factors_of_one_file_both_count(tmp_path: Path) -> None:
    """llama.cpp divides the frequencies, then scales them."""
    keys = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    keys["rope__scaling__original_context_length"] = L
    path = random_gguf.llama(tmp_path / "m.gguf", tensors={"rope_freqs.weight": divisors(LLAMA_3)}, **keys)
    scaling = scaling_from_gguf(path)
    yarn = np.array(reference.by_parts_frequencies(DIM, THETA, 4.0, L, reference.index_ramp))
    assert np.allclose(scaling.inv_freq, yarn / divisors(LLAMA_3), rtol=1e-6)
    expected = library_logits(UNPATCHED, path, TOKENS, type_k=0, type_v=0)
    assert relative_error(logits(path), expected) < 1e-3
    assert relative_error(logits(path, scaling), expected) < 1e-3


def test_the_files_own_scaling_is_that_of_the_unpatched_library(scaled: Path) -> None:
    expected = library_logits(UNPATCHED, scaled, TOKENS, type_k=0, type_v=0)
    assert relative_error(logits(scaled), expected) < 1e-3


def changed(path: Path, scaling: Any) -> np.ndarray:
    with closing(Llama(path, n_ctx=512, n_threads=1, verbose=False, type_k=0, type_v=0)) as llama:
        read(llama, TOKENS[:50])
        llama.set_rope_scaling(scaling)
        return read(llama, TOKENS)


@pytest.mark.parametrize("ask", [logits, changed], ids=["constructor", "set_rope_scaling"])
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_the_callers_scaling_replaces_the_tensors(
    scaled, plain, asked, ask: Callable[..., np.ndarray]
) -> None:
    expected = logits(plain, asked)
    assert relative_error(ask(scaled, asked), expected) < 1e-5
    assert relative_error(logits(scaled), expected) > 0.1


def test_llama_cpps_own_arguments_replace_the_tensors_too(scaled, plain) -> None:
    arguments = {"rope_scaling_type": 1, "rope_freq_scale": 0.25, "yarn_attn_factor": 1.0}
    assert relative_error(logits(scaled, **arguments), logits(plain, "linear", n_ctx=4 * L)) < 1e-5


def test_a_base_alone_keeps_the_factors(scaled: Path) -> None:
    expected = library_logits(UNPATCHED, scaled, TOKENS, type_k=0, type_v=0, rope_freq_base=5e5)
    assert relative_error(logits(scaled, rope_freq_base=5e5), expected) < 1e-3
    assert relative_error(logits(scaled), expected) > 0.1


def test_a_further_context_has_the_callers_scaling(scaled, plain) -> None:
    got, wanted = (_in_further_context(path) for path in (scaled, plain))
    assert relative_error(got, wanted) < 1e-5


def _in_further_context(path: Path) -> np.ndarray:
    from yarn_gguf.evaluate.reading.losses import token_losses

    with closing(Llama(path, n_ctx=512, n_threads=1, verbose=False, rope_scaling=ASKED["yarn"])) as llama:
        return np.array(token_losses(llama, TOKENS))


@pytest.mark.parametrize("library", ["patched", "unpatched"])
@pytest.mark.parametrize("name", ["none", "linear", "ntk", "yarn"])
def test_an_extended_file_has_the_new_scaling_alone(scaled, plain, tmp_path, name, library) -> None:
    """In every engine: the tensors are gone."""
    done = extend(scaled, ASKED[name], output=tmp_path / "out.gguf")
    assert done.scaling.method == name
    assert done.replaced == read_model(scaled).scaling
    expected = logits(plain, ASKED[name])
    if library == "patched":
        assert relative_error(logits(done.path), expected) < 1e-5
    else:
        found = library_logits(UNPATCHED, done.path, TOKENS, type_k=0, type_v=0)
        assert relative_error(found, expected) < 1e-3


def test_a_file_goes_back_to_the_scaling_of_its_tensors(scaled: Path, tmp_path: Path) -> None:
    own = read_model(scaled).scaling
    expected = library_logits(UNPATCHED, scaled, TOKENS, type_k=0, type_v=0)
    path = extend(scaled, ASKED["yarn"], output=tmp_path / "out.gguf").path
    assert extend(path, own).scaling == own
    assert relative_error(library_logits(UNPATCHED, path, TOKENS, type_k=0, type_v=0), expected) < 1e-6
    assert relative_error(logits(path), expected) < 1e-3
    assert extend(path, own).how == "unchanged"


def test_whoever_replaces_a_trained_scaling_is_told(scaled: Path, tmp_path: Path, capsys) -> None:
    method = read_model(scaled).scaling.method
    with pytest.warns(ReplacedScalingWarning, match=f"trained with {method} scaling, which rope_scaling"):
        logits(scaled, "none")
    assert main(["extend", str(scaled), "-o", str(tmp_path / "out.gguf"), "--factor", "4"]) == 0
    assert f"note: the model was trained with {method} scaling" in capsys.readouterr().out


def test_nobody_is_told_of_a_scaling_that_stays(scaled: Path, recwarn) -> None:
    logits(scaled, read_model(scaled).scaling)
    assert not [each for each in recwarn if each.category is ReplacedScalingWarning]


def test_a_state_of_another_scaling_than_the_tensors_is_refused(scaled: Path) -> None:
    settings = {"n_ctx": 512, "n_threads": 1, "verbose": False}
    with (
        closing(Llama(scaled, **settings)) as own,
        closing(Llama(scaled, rope_scaling="none", **settings)) as other,
    ):
        own.eval(TOKENS[:50])
        with pytest.raises(RopeScalingError, match="another rope scaling"):
            other.load_state(own.save_state())


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_factors_that_divide_nothing_are_refused(tmp_path: Path, value: float) -> None:
    factors = np.full(DIM // 2, value, np.float32)
    path = random_gguf.llama(tmp_path / "model.gguf", tensors={"rope_freqs.weight": factors})
    with pytest.raises(ModelLoadError, match=r"rope_freqs\.weight holds"):
        logits(path)
    with pytest.raises(RopeScalingError, match="must hold 16 numbers > 0"):
        scaling_from_gguf(path)


def test_half_of_longropes_tensors_is_refused(tmp_path: Path) -> None:
    factors = {"rope_factors_long.weight": np.ones(DIM // 2, np.float32)}
    path = random_gguf.llama(tmp_path / "model.gguf", tensors=factors)
    with pytest.raises(GGUFError, match="one is missing"):
        scaling_from_gguf(path)


# ---- pairs of dimensions that do not rotate (Gemma 4's proportional rope) ---------------------------

STILL = np.where(np.arange(DIM // 2) < 4, 1, 1e30).astype(np.float32)  # four pairs rotate


def held(scaling: RopeScaling) -> RopeScaling:
    """Return the scaling as a table in which the other pairs hardly rotate, for the plain model."""
    inv_freq, temperature = scaling.frequencies(DIM, THETA)
    table = tuple(np.where(STILL == 1, inv_freq, 1e-30).tolist())
    return RopeScaling("explicit", scaling.factor, L, attention_factor=temperature, inv_freq=table)


@pytest.fixture(scope="module")
def still(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "still.gguf"
    return random_gguf.llama(
        path, tensors={"rope_freqs.weight": STILL}, rope__scaling__original_context_length=L
    )


@pytest.mark.parametrize("name", ["none", "linear", "ntk", "yarn", "yarn by rotations", "explicit"])
def test_pairs_that_do_not_rotate_stay_under_every_scaling(still, plain, name) -> None:
    assert relative_error(logits(still, ASKED[name]), logits(plain, held(ASKED[name]))) < 1e-5


def test_pairs_that_do_not_rotate_stay_under_dynamic_scaling(tmp_path: Path) -> None:
    """The keys of one layer do not depend on earlier factors."""
    tensors = {"rope_freqs.weight": STILL}
    path = random_gguf.llama(tmp_path / "one.gguf", layers=1, tensors=tensors)
    settings = {"n_ctx": 512, "n_ubatch": 32, "n_threads": 1, "verbose": False, "type_k": 0, "type_v": 0}
    growing = DynamicScaling.of("yarn", original_max_position_embeddings=100)
    with closing(Llama(path, rope_scaling=growing, **settings)) as llama:
        got = read(llama, TOKENS)[-1]
        factor = llama.dynamic_state.factor
        assert llama.dynamic_state.rotations > 1
    assert relative_error(got, logits(path, RopeScaling("yarn", factor, 100))[-1]) < 1e-4


def test_an_extended_file_keeps_the_pairs_that_do_not_rotate(still, plain, tmp_path: Path) -> None:
    path = extend(still, ASKED["yarn"], output=tmp_path / "out.gguf").path
    assert relative_error(logits(path), logits(plain, held(ASKED["yarn"]))) < 1e-5
