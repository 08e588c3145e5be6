"""LongRoPE follows the length of the text: short factors up to the original context, then the long ones.

The witness is transformers, which chooses by the length of what it reads.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import conformance
import numpy as np
import pytest
import torch
from conformance import ROWS, Row, make_model
from dynamics import L, tiny_llama
from hf_checkpoints import convert_weights
from libraries import relative_error
from reading import read

from yarn_gguf import DynamicScaling, RopeScaling, RopeScalingError
from yarn_gguf.errors import LongFactorsWarning
from yarn_gguf.rope.read import read_model

NAMES = ["llama", "phi3, 3/4 rotary"]
Model = tuple[torch.nn.Module, Path]


def row_of(name: str, **config) -> Row:
    original = {"original_max_position_embeddings": L} if "phi3" in name else {}
    return replace(ROWS[name], config=ROWS[name].config | original | config)


@pytest.fixture(scope="module", params=NAMES)
def model(request, tmp_path_factory) -> Model:
    """A model that was trained with LongRoPE, in transformers and as a file."""
    folder = tmp_path_factory.mktemp("longrope")
    row = row_of(request.param)
    torch_model = make_model(row, conformance.COLUMNS["LongRoPE 4"].scaling(row.dim))
    torch_model.save_pretrained(folder)
    convert_weights(folder, folder / "model.gguf", type="f32")
    return torch_model.eval(), folder / "model.gguf"


def expected(model: Model, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model[0](torch.tensor([tokens])).logits[0].float().numpy()


@pytest.mark.parametrize("length", [L // 2, L])
def test_a_short_text_in_a_long_context_has_the_short_factors(model: Model, tokens, length: int) -> None:
    with closing(tiny_llama(model[1])) as llama:
        got = read(llama, tokens[:length])
        assert llama.dynamic_state.factor == 1
    assert relative_error(got, expected(model, tokens[:length])) < 1e-4


def test_a_long_prompt_in_one_piece_has_the_long_factors(model: Model, tokens) -> None:
    text = tokens[: 3 * L]
    with closing(tiny_llama(model[1], n_batch=4 * L, n_ubatch=4 * L)) as llama:
        got = read(llama, text)
    assert relative_error(got, expected(model, text)) < 1e-4


def test_keys_of_a_text_that_grows_beyond_are_rotated_once(model: Model, tokens) -> None:
    with closing(tiny_llama(model[1], n_batch=32, n_ubatch=32)) as llama:
        read(llama, tokens[: 2 * L])
        assert llama.dynamic_state.rotations == 1
        assert llama.dynamic_state.factor == read_model(model[1]).scaling.factor
        llama.n_tokens = L // 2
        got = read(llama, tokens[L // 2 : L // 2 + 1])[-1]
        assert llama.dynamic_state.rotations == 2
    assert relative_error(got, expected(model, tokens[: L // 2 + 1])[-1]) < 0.2  # read with the long factors


def test_the_rotated_keys_of_one_layer_are_those_of_the_long_factors(tmp_path: Path, tokens) -> None:
    """The keys of one layer do not depend on the factors of layers below."""
    row = row_of("llama", num_hidden_layers=1)
    scaling = conformance.COLUMNS["LongRoPE 4"].scaling(row.dim)
    torch_model = make_model(row, scaling).eval()
    torch_model.save_pretrained(tmp_path)
    convert_weights(tmp_path, tmp_path / "model.gguf", type="f32")
    with closing(tiny_llama(tmp_path / "model.gguf", n_batch=32, n_ubatch=32)) as llama:
        got = read(llama, tokens[: 2 * L])[-1]
    assert relative_error(got, expected((torch_model, tmp_path), tokens[: 2 * L])[-1]) < 1e-4


def test_a_static_longrope_is_chosen_by_the_context(model: Model, tokens) -> None:
    """For whoever wants llama.cpp's way."""
    scaling = read_model(model[1]).scaling
    with closing(tiny_llama(model[1], scaling)) as llama:
        assert isinstance(llama.rope_scaling, RopeScaling)
        assert relative_error(read(llama, tokens[:L]), expected(model, tokens[:L])) > 0.01


def test_a_context_within_the_original_one_is_left_to_the_file(model: Model, tokens) -> None:
    with closing(tiny_llama(model[1], n_ctx=L)) as llama:
        assert llama.rope_scaling is None
        assert relative_error(read(llama, tokens[:L]), expected(model, tokens[:L])) < 1e-4


def test_the_dict_of_transformers_follows_the_length(model: Model) -> None:
    scaling = read_model(model[1]).scaling
    parameters = {
        "rope_type": "longrope",
        "factor": scaling.factor,
        "short_factor": list(scaling.short_factor),
        "long_factor": list(scaling.long_factor),
        "original_max_position_embeddings": L,
    }
    with closing(tiny_llama(model[1], parameters)) as llama:
        assert isinstance(llama.rope_scaling, DynamicScaling)


def test_a_state_goes_on_in_another_context(model: Model, tokens) -> None:
    with closing(tiny_llama(model[1])) as one, closing(tiny_llama(model[1])) as other:
        one.eval(tokens[: 2 * L])
        state = one.save_state()
        wanted = read(one, tokens[2 * L : 2 * L + 4])
        other.load_state(state)
        assert np.array_equal(read(other, tokens[2 * L : 2 * L + 4]), wanted)


def test_a_context_that_cannot_follow_the_text_has_the_factors_of_its_size(
    model, tokens, monkeypatch
) -> None:
    """A warning says so: llama.cpp does the same without a word."""

    def refuse(context: int, scaling: DynamicScaling) -> None:
        raise RopeScalingError("the cache of this model cannot be shifted")

    with closing(tiny_llama(model[1], read_model(model[1]).scaling)) as llama:
        static = read(llama, tokens[:L])
    monkeypatch.setattr("yarn_gguf.run.context_scaling.set_dynamic_scaling", refuse)
    with pytest.warns(LongFactorsWarning, match="for long ones: the cache of this model cannot"):
        llama = tiny_llama(model[1])
    with closing(llama):
        assert relative_error(read(llama, tokens[:L]), static) < 1e-6
