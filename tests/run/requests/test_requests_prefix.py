"""Requests to a Llama: a prompt goes on from its prefix in the cache."""

from __future__ import annotations

import inspect
from contextlib import closing

import pytest
import random_gguf
from libraries import relative_error
from llamas import TOKENS, answer, last_logits, logits_after, tiny
from reading import read

from yarn_gguf import DynamicScaling, YarnGGUFError
from yarn_gguf.errors import NoRoomError
from yarn_gguf.run.llama import Llama, llama_cpp

L = 256
POLICIES = [
    None,
    *(
        DynamicScaling.of("yarn", policy=policy, original_max_position_embeddings=L)
        for policy in ("growth", "request", "exact")
    ),
]


@pytest.mark.parametrize("scaling", POLICIES, ids=lambda scaling: getattr(scaling, "policy", "none"))
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (TOKENS[:600], [*TOKENS[:600], *TOKENS[700:750]]),  # the first goes on
        (TOKENS[:900], [*TOKENS[:300], *TOKENS[1000:1020]]),  # another, shorter branch: the factor falls
        (TOKENS[:300], [*TOKENS[:200], *TOKENS[1000:1700]]),  # another, longer branch: the factor rises
        (TOKENS[:600], TOKENS[:600]),  # the same
        (TOKENS[:600], TOKENS[:100]),  # a prefix
    ],
)
def test_going_on_from_a_prefix_equals_reading_the_whole_prompt(tmp_path, scaling, first, second):
    """The keys of one layer do not depend on the factor under which earlier tokens were read."""
    path = random_gguf.llama(tmp_path / "model.gguf", layers=1)
    settings = {"rope_scaling": scaling, "type_k": 0, "type_v": 0}
    with closing(tiny(path, **settings)) as fresh, closing(tiny(path, **settings)) as reusing:
        answer(reusing, first, 5)
        seen = []
        reusing.progress = lambda done, total: seen.append(total)
        expected, got = logits_after(fresh, second), logits_after(reusing, second)
        assert reusing.dynamic_state.factor == fresh.dynamic_state.factor
        assert relative_error(got, expected) < 1e-4
        assert sum(set(seen)) < len(second)  # a part came from the cache


@pytest.mark.parametrize("arch", ["lfm2", "mamba"])
@pytest.mark.parametrize("second", [TOKENS[:100], [*TOKENS[:200], 7, 8], TOKENS[:300], TOKENS[:450]])
def test_recurrent_layers_read_a_shorter_prompt_again(model_of, arch, second):
    with closing(tiny(model_of(arch))) as fresh, closing(tiny(model_of(arch))) as reusing:
        answer(reusing, TOKENS[:300], 5)
        assert relative_error(logits_after(reusing, second), logits_after(fresh, second)) < 1e-4


@pytest.mark.parametrize("arch", ["llama", "lfm2", "mamba"])
def test_a_cut_by_hand_is_read_again_where_the_cache_cannot_be_cut(model_of, arch):
    """Speculative decoding does so: it sets n_tokens back and reads on."""
    with closing(tiny(model_of(arch))) as llama:
        llama.eval(TOKENS[:200])
        llama.n_tokens = 150
        llama.eval(TOKENS[300:320])
        got = last_logits(llama)
        assert llama.n_tokens == 170
        llama.reset()
        llama.eval([*TOKENS[:150], *TOKENS[300:320]])
        assert relative_error(got, last_logits(llama)) < 1e-4


@pytest.mark.parametrize("arch", ["llama", "lfm2", "mamba"])
def test_logits_after_a_cut_are_those_of_a_text_that_was_never_cut(model_of, arch):
    with closing(tiny(model_of(arch))) as llama:
        llama.eval(TOKENS[:200])
        llama.n_tokens = 150
        got = read(llama, TOKENS[300:310])
        llama.reset()
        llama.eval(TOKENS[:150])
        expected = read(llama, TOKENS[300:310])
        assert relative_error(got, expected) < 1e-4


@pytest.mark.parametrize("name", ["__init__", "generate", "sample", "embed", "tokenize", "detokenize"])
def test_a_method_has_the_parameters_of_the_upstream_method(name: str) -> None:
    theirs = inspect.signature(getattr(llama_cpp.Llama, name)).parameters
    ours = inspect.signature(getattr(Llama, name)).parameters
    shared = [each for each in theirs if name != "__init__" or each != "kwargs"]
    assert [each for each in ours if each in theirs] == shared
    more = {"__init__": ["rope_scaling", "progress", "mul_mat_q", "rpc_servers"]}.get(name, [])
    assert [each for each in ours if each not in theirs] == more


def test_a_misspelt_argument_is_a_type_error(model_of) -> None:
    """llama_cpp.Llama accepts any keyword silently."""
    with pytest.raises(TypeError, match="rope_scalling"):
        Llama(model_of("llama"), rope_scalling="yarn")


@pytest.mark.parametrize(("swa_full", "is_read_again"), [(None, False), (True, False), (False, True)])
def test_a_cut_beyond_the_cache_of_a_window_is_read_again(model_of, swa_full, is_read_again):
    path = model_of("gemma2")
    second = [*TOKENS[:500], *TOKENS[1000:1010]]
    with closing(tiny(path)) as fresh, closing(tiny(path, swa_full=swa_full)) as reusing:
        answer(reusing, TOKENS[:1500], 3)
        seen = []
        reusing.progress = lambda done, total: seen.append(total)
        assert relative_error(logits_after(reusing, second), logits_after(fresh, second)) < 1e-3
        assert set(seen) == {510 if is_read_again else 10}
        seen.clear()
        answer(reusing, [*second, *TOKENS[1100:1120]])
        assert set(seen) == {20}  # nothing is cut, so nothing is read again


def test_a_refused_state_leaves_the_cached_text(model_of):
    """Else the tokens of one text would stand for the cache of the other."""
    other, text = TOKENS[:50], TOKENS[100:200]
    with (
        closing(tiny(model_of("llama"))) as fresh,
        closing(tiny(model_of("llama"), rope_scaling="yarn", n_ctx=1 << 13)) as llama,
    ):
        fresh.eval(other)
        state = fresh.save_state()
        expected = logits_after(llama, other)
        logits_after(llama, text)
        with pytest.raises(YarnGGUFError):
            llama.load_state(state)
        assert relative_error(logits_after(llama, other), expected) < 1e-4


def test_a_state_that_does_not_fit_is_refused_and_leaves_the_cached_text(model_of):
    with closing(tiny(model_of("llama"))) as long, closing(tiny(model_of("llama"), n_ctx=256)) as llama:
        long.eval(TOKENS[:400])
        llama.eval(TOKENS[:50])
        with pytest.raises(NoRoomError, match="the state has 400 tokens, and n_ctx is 256"):
            llama.load_state(long.save_state())
        assert llama.input_ids[: llama.n_tokens].tolist() == TOKENS[:50]
        llama.eval(TOKENS[50:60])
        assert llama.n_tokens == 60


def test_a_state_of_a_shorter_context_goes_on_to_the_end_of_the_longer(model_of):
    with closing(tiny(model_of("llama"), n_ctx=256)) as short, closing(tiny(model_of("llama"))) as llama:
        short.eval(TOKENS[:200])
        llama.load_state(short.save_state())
        llama.eval(TOKENS[200:600])
        got = last_logits(llama)
        llama.reset()
        llama.eval(TOKENS[:600])
        assert relative_error(got, last_logits(llama)) < 1e-4


def test_after_a_signal_within_load_state_the_text_is_read_anew(model_of, monkeypatch):
    """The cache may be of either state then, or of both in part."""

    def interrupt(llama: Llama, state: llama_cpp.LlamaState) -> None:
        load(llama, state)
        raise KeyboardInterrupt

    load = llama_cpp.Llama.load_state
    with closing(tiny(model_of("llama"))) as other, closing(tiny(model_of("llama"))) as llama:
        other.eval(TOKENS[100:200])
        state = other.save_state()
        expected = logits_after(llama, TOKENS[:50])
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(llama_cpp.Llama, "load_state", interrupt)
            llama.load_state(state)
        assert llama.n_tokens == 0
        assert relative_error(logits_after(llama, TOKENS[:50]), expected) < 1e-4


@pytest.mark.parametrize(("windows", "is_read_again"), [(0.5, True), (1, False)])
def test_a_window_that_is_partly_out_of_the_cache_is_read_again(model_of, windows, is_read_again):
    path = model_of("gemma2")
    with closing(tiny(path)) as fresh, closing(tiny(path, swa_full=False)) as reusing:
        answer(reusing, TOKENS[:1500], 3)
        first = llama_cpp.llama_memory_seq_pos_min(reusing._ctx.memory, 0)
        window = llama_cpp.llama_model_n_swa(reusing._model.model)
        length = first + int(windows * window)
        second = [*TOKENS[:length], *TOKENS[1600:1610]]
        assert length < 1500
        seen = []
        reusing.progress = lambda done, total: seen.append(total)
        assert relative_error(logits_after(reusing, second), logits_after(fresh, second)) < 1e-3
        assert set(seen) == {len(second) if is_read_again else 10}
