"""Caches of states that several Llamas use: an entry of another model, scaling or context is not found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from chat_models import write_chat_model

from yarn_gguf import DynamicScaling, RopeScaling
from yarn_gguf.run.llama import Llama, llama_cpp

CACHES: dict[str, Callable] = {
    "RAM": lambda folder: llama_cpp.LlamaRAMCache(),
    "disk": lambda folder: llama_cpp.LlamaDiskCache(str(folder)),
}
TEXT = "The king had three sons, of whom the youngest went out into the world"


@pytest.fixture(scope="module")
def model(smollm2_path, tmp_path_factory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("models") / "a.gguf", smollm2_path)


@pytest.fixture(scope="module")
def other_model(smollm2_path, tmp_path_factory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("models") / "b.gguf", smollm2_path, layers=3)


@pytest.fixture(params=CACHES)
def states(request, tmp_path):
    return CACHES[request.param](tmp_path)


def ask(model: Path, states=None, **settings) -> tuple[str, int]:
    """Return a new Llama's greedy answer, and the tokens that it read of the prompt."""
    read = []
    with closing(Llama(model, **({"n_ctx": 128, "verbose": False} | settings))) as llama:
        llama.progress = lambda done, total: read.append(total)
        llama.set_cache(states)
        answer = llama.create_completion(TEXT, max_tokens=4, temperature=0)
    return answer["choices"][0]["text"], max(read)


def test_a_state_is_found_by_a_like_context(model, states):
    first, read = ask(model, states)
    again, read_again = ask(model, states)
    assert first == again
    assert read > 10
    assert read_again == 1


OTHERS = {
    "static": {"rope_scaling": RopeScaling("yarn", 4.0, 64)},
    "dynamic": {"rope_scaling": DynamicScaling.of("yarn", original_max_position_embeddings=8)},
    "another policy": {
        "rope_scaling": DynamicScaling.of("yarn", policy="request", original_max_position_embeddings=8)
    },
    "base": {"rope_freq_base": 5000.0},
    "n_ctx": {"n_ctx": 512},
    "n_batch": {"n_batch": 16},
    "logits_all": {"logits_all": True},
    "type_k": {"type_k": llama_cpp.GGML_TYPE_F32},
    "flash_attn": {"flash_attn": False},
    "window": {"swa_full": False},
}


@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS)
def test_a_state_of_another_context_is_not_found(model, states, settings):
    """The answer is that without a cache, and the other entry stays."""
    expected = ask(model, **settings)
    ask(model, states)
    assert ask(model, states, **settings) == expected
    assert ask(model, states)[1] == 1
    assert ask(model, states, **settings)[1] < expected[1]


def test_a_state_of_another_model_is_not_found(model, other_model, states):
    expected = ask(other_model)
    ask(model, states)
    assert ask(other_model, states) == expected


def test_a_state_from_before_the_scaling_was_changed_is_not_found(model, states):
    scaling = RopeScaling("yarn", 4.0, 64)
    expected = ask(model, rope_scaling=scaling)[0]
    with closing(Llama(model, n_ctx=128, verbose=False)) as llama:
        llama.set_cache(states)
        llama.create_completion(TEXT, max_tokens=4, temperature=0)
        llama.set_rope_scaling(scaling)
        answer = llama.create_completion(TEXT, max_tokens=4, temperature=0)
    assert answer["choices"][0]["text"] == expected


def test_a_cache_that_another_llama_has_may_be_given(model, states):
    with closing(Llama(model, n_ctx=128, verbose=False)) as one, closing(Llama(model, verbose=False)) as two:
        one.set_cache(states)
        two.set_cache(one.cache)
        assert two.cache.states is states
        assert two.cache.capacity_bytes == states.capacity_bytes
        two.set_cache(None)
        assert two.cache is None
