"""Dynamic scaling that is refused, with the reason."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import conformance
import numpy as np
import pytest
from conformance import ROWS
from dynamics import TYPES, L, static_logits, tiny_llama
from libraries import relative_error
from reading import read
from tiny_gguf import write_tiny

from yarn_gguf import DynamicScaling, RopeScaling, RopeScalingError, extend
from yarn_gguf.errors import ReplacedScalingWarning
from yarn_gguf.native.scaling import set_dynamic_scaling
from yarn_gguf.run.llama import Llama


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"method": "llama3"},
            "dynamic scaling method must be one of linear, ntk, by-parts, yarn, longrope, got 'llama3'",
        ),
        ({"policy": "always"}, "dynamic scaling policy must be one of growth, request, exact, got 'always'"),
        ({"step": 0.5}, "must be a number >= 1, got 0.5"),
        ({"factor": float("nan")}, "factor must be a number >= 1"),
        ({"beta_fast": 0.5}, "beta_fast must be a number > beta_slow"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(values: dict, message: str) -> None:
    with pytest.raises(RopeScalingError, match=message):
        DynamicScaling.of(**values)


@pytest.mark.parametrize("dynamic", [DynamicScaling.of(policy="exact"), DynamicScaling.of(step=1.005)])
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_rotations_that_rounding_would_undo_are_refused(checkpoint, cache: str, dynamic) -> None:
    """A float16 cache lost 8192 rotations, one a token, to rounding: the perplexity rose by 440%."""
    _, path = checkpoint("llama")
    with pytest.raises(RopeScalingError, match=r"rounding would undo .* a K cache of type f32"):
        tiny_llama(path, dynamic, type_k=TYPES[cache], flash_attn=True)


def test_exact_scaling_takes_a_float32_cache_by_itself(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    dynamic = DynamicScaling.of(policy="exact")
    with closing(Llama(path, n_ctx=8 * L, rope_scaling=dynamic, verbose=False)) as llama:
        read(llama, tokens[: 2 * L])
        assert llama.dynamic_state.factor == 2


@pytest.mark.parametrize("column", ["Llama 3, 8", "LongRoPE 4", "explicit"])
def test_dynamic_scaling_replaces_the_one_that_a_model_was_trained_with(
    checkpoint, tokens, tmp_path: Path, column: str
) -> None:
    """With a warning. The witness has the same weights and no scaling of its own."""
    _, plain = checkpoint("llama")
    table = tuple(np.geomspace(1, 1e-4, conformance.HEAD // 2).tolist())
    trained = RopeScaling("explicit", 4.0, L, inv_freq=table)
    if column != "explicit":
        trained = conformance.COLUMNS[column].scaling(ROWS["llama"].dim)
    path = extend(plain, trained, output=tmp_path / "trained.gguf").path
    dynamic = DynamicScaling.of(original_max_position_embeddings=L)
    with closing(tiny_llama(plain, dynamic)) as llama:
        expected = read(llama, tokens[: 3 * L])
    with pytest.warns(ReplacedScalingWarning, match=rf"trained with {trained.method} scaling"):
        llama = tiny_llama(path, dynamic)
    with closing(llama):
        assert np.array_equal(read(llama, tokens[: 3 * L]), expected)


def test_a_cache_in_use_takes_no_dynamic_scaling(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    expected = static_logits(path, tokens[: L + 1], RopeScaling())[-1:]
    with closing(tiny_llama(path, "none")) as llama:
        read(llama, tokens[:L])
        with pytest.raises(RopeScalingError, match="rotated by other frequencies: clear it first"):
            set_dynamic_scaling(llama._ctx.ctx, DynamicScaling.of(original_max_position_embeddings=L))
        assert relative_error(read(llama, tokens[L : L + 1]), expected) < 1e-5


def test_a_model_without_rotary_embedding_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "gpt2.gguf", "gpt2")
    with pytest.raises(RopeScalingError, match="gpt2 models have no rotary embedding"):
        tiny_llama(path, "dynamic-yarn")


@pytest.mark.parametrize("own", [{"attention_factor": 1.5}, {"mscale": 1.0, "mscale_all_dim": 0.5}], ids=str)
def test_a_temperature_that_cannot_follow_the_factor_is_refused(checkpoint, own: dict) -> None:
    _, path = checkpoint("llama")
    with pytest.raises(RopeScalingError, match="temperature of dynamic scaling follows the factor"):
        extend(path, RopeScaling("yarn", 4.0, **own), dynamic="growth", output=path.parent / "x")
