"""Sessions: a reopened text goes on as if it had never been interrupted."""

from __future__ import annotations

import itertools
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import random_gguf
from libraries import relative_error
from reading import read
from sessions import F16, F32, Q8_0, TOKENS, L, reopened, saved, tiny_llama

from yarn_gguf import DynamicScaling, RopeScaling
from yarn_gguf.run.llama import Llama
from yarn_gguf.session.file import START, read_contents
from yarn_gguf.session.session import open_session

CACHES = [
    ("llama", {"flash_attn": True}),
    ("llama", {"flash_attn": False}),
    ("llama", {"flash_attn": True, "type_k": Q8_0, "type_v": Q8_0}),
    ("llama", {"flash_attn": False, "type_k": Q8_0}),
    ("llama", {"flash_attn": True, "type_k": F32, "type_v": F16}),
    ("deepseek-v2", {"flash_attn": True}),  # compressed attention has no V
    ("deepseek-v2", {"flash_attn": False}),
]


@pytest.mark.parametrize(("name", "cache"), CACHES, ids=str)
def test_logits_after_reopening_are_those_of_an_uninterrupted_run(
    model_of, path: Path, name: str, cache: dict
) -> None:
    """The session is saved three times: written once, appended to twice."""
    with closing(tiny_llama(model_of(name), **cache)) as llama:
        session = open_session(llama, path)
        for start, stop in [(0, 100), (100, 101), (101, 333)]:
            llama.prefill(TOKENS[start:stop])
            session.save()
            assert session.tokens == TOKENS[:stop]
        expected = read(llama, TOKENS[400:500])
    with closing(tiny_llama(model_of(name), **cache)) as llama:
        assert open_session(llama, path).tokens == TOKENS[:333]
        assert np.array_equal(read(llama, TOKENS[400:500]), expected)


@pytest.mark.parametrize("type_", [F16, F32, Q8_0])
def test_a_change_of_the_factor_rewrites_the_file(model: Path, path: Path, type_: int) -> None:
    cache = {"type_k": type_, "type_v": type_, "flash_attn": True}
    with closing(tiny_llama(model, DynamicScaling(), **cache)) as llama:
        session = open_session(llama, path)
        llama.prefill(TOKENS[: L - 30])
        session.save()
        before = path.stat().st_ino
        llama.prefill(TOKENS[L - 30 : L - 10])
        session.save()
        assert path.stat().st_ino == before
        llama.prefill(TOKENS[L - 10 : 2 * L - 20])
        factor = llama.dynamic_state.factor
        assert factor > 1
        session.save()
        assert path.stat().st_ino != before
        llama.prefill(TOKENS[2 * L - 20 : 2 * L - 13])
        session.save()
        expected = read(llama, TOKENS[2 * L - 13 : 5 * L])
        last = llama.dynamic_state.factor
    with closing(tiny_llama(model, DynamicScaling(), **cache)) as llama:
        assert open_session(llama, path).tokens == TOKENS[: 2 * L - 13]
        assert llama.dynamic_state.factor == factor
        assert np.array_equal(read(llama, TOKENS[2 * L - 13 : 5 * L]), expected)
        assert llama.dynamic_state.factor == last > factor


def test_keys_that_were_rotated_and_back_are_written_again(model: Path, path: Path) -> None:
    """The factor is the old one, but rounding has changed the keys."""
    with closing(tiny_llama(model, DynamicScaling(), type_k=Q8_0, flash_attn=True)) as llama:
        session = open_session(llama, path)
        llama.prefill(TOKENS[: L - 30])
        session.save()
        llama.prefill(TOKENS[: 3 * L])
        llama.n_tokens = L - 30
        llama.prefill(TOKENS[500:510])
        assert llama.dynamic_state.factor == 1
        session.save()
        expected = read(llama, TOKENS[600:700])
    with closing(reopened(model, path, DynamicScaling(), type_k=Q8_0, flash_attn=True)) as llama:
        assert np.array_equal(read(llama, TOKENS[600:700]), expected)


def test_a_text_read_again_under_another_scaling_is_written_again(model: Path, path: Path) -> None:
    with closing(tiny_llama(model, RopeScaling("yarn", 2.0))) as llama:
        llama.prefill(TOKENS[:100])
        session = open_session(llama, path)
        session.save()
        llama.set_rope_scaling(RopeScaling("yarn", 4.0))
        llama.prefill(TOKENS[:100])
        session.save()
        expected = read(llama, TOKENS[100:150])
    with closing(tiny_llama(model)) as llama:
        llama.set_rope_scaling(RopeScaling("yarn", 4.0))
        open_session(llama, path)
        assert np.array_equal(read(llama, TOKENS[100:150]), expected)


def test_a_reopened_request_keeps_its_factor(model: Path, path: Path) -> None:
    scaling = DynamicScaling.of(policy="request")
    with closing(tiny_llama(model, scaling)) as llama:
        llama.reserve(4 * L)
        llama.prefill(TOKENS[:100])
        assert llama.dynamic_state.factor == 4
        open_session(llama, path).save()
        expected = read(llama, TOKENS[100:200])
    with closing(reopened(model, path, scaling)) as llama:
        assert np.array_equal(read(llama, TOKENS[100:200]), expected)
        assert llama.dynamic_state.factor == 4


@pytest.mark.parametrize("flash_attn", [True, False])
def test_after_a_cut_the_new_branch_is_saved(model: Path, path: Path, flash_attn: bool) -> None:
    """The branch is appended. The cut divides a block, whose rest is checked and not used."""
    with closing(tiny_llama(model, flash_attn=flash_attn)) as llama:
        session = open_session(llama, path)
        llama.prefill(TOKENS[:300])
        session.save()
        first = path.read_bytes()
        llama.n_tokens = 260
        llama.prefill(TOKENS[700:750])
        session.save()
        assert path.read_bytes()[START : len(first)] == first[START:]
        assert session.tokens == TOKENS[:260] + TOKENS[700:750]
        expected = read(llama, TOKENS[800:900])
    with closing(reopened(model, path, flash_attn=flash_attn)) as llama:
        assert llama.input_ids[: llama.n_tokens].tolist() == TOKENS[:260] + TOKENS[700:750]
        assert np.array_equal(read(llama, TOKENS[800:900]), expected)


def test_a_cut_alone_is_saved(model: Path, path: Path) -> None:
    with closing(tiny_llama(model)) as llama:
        session = open_session(llama, path)
        llama.prefill(TOKENS[:300])
        session.save()
        llama.n_tokens = 280
        session.save()
    with closing(reopened(model, path)) as llama:
        assert llama.n_tokens == 280


def test_questions_after_one_document_keep_the_file_small(model: Path, path: Path) -> None:
    """The space of earlier questions is given back now and then."""
    with closing(tiny_llama(model)) as llama:
        session = open_session(llama, path)
        llama.prefill(TOKENS[:300])
        session.save()
        document = path.stat().st_size
        for i in range(30):
            llama.n_tokens = 300
            llama.prefill(TOKENS[400 + i : 440 + i])
            session.save()
            assert path.stat().st_size < 2 * document
    with closing(reopened(model, path)) as llama:
        assert llama.n_tokens == 340


def test_blocks_are_as_large_as_the_limit_allows(model: Path, path: Path, monkeypatch) -> None:
    monkeypatch.setattr("yarn_gguf.session.session._BLOCK", 100_000)
    with closing(tiny_llama(model)) as llama:
        llama.prefill(TOKENS[:900])
        open_session(llama, path).save()
        expected = read(llama, TOKENS[900:950])
    sizes = [block.size for block in read_contents(path).blocks]
    assert len(sizes) > 5
    assert max(sizes) < 110_000
    with closing(reopened(model, path)) as llama:
        assert np.array_equal(read(llama, TOKENS[900:950]), expected)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo3"])
def test_sliding_windows_are_restored(model_of, path: Path, name: str) -> None:
    """The whole text is restored, so that it can be cut anywhere, also after more was read."""
    with closing(tiny_llama(model_of(name))) as llama:
        session = open_session(llama, path)
        llama.prefill(TOKENS[:300])
        session.save()
        before = path.stat().st_ino
        llama.prefill(TOKENS[300:333])
        session.save()
        assert path.stat().st_ino == before
        expected = read(llama, TOKENS[400:500])
        llama.n_tokens = 120
        after_cut = read(llama, TOKENS[500:600])
    with closing(reopened(model_of(name), path)) as llama:
        assert np.array_equal(read(llama, TOKENS[400:500]), expected)
        llama.n_tokens = 120
        assert np.array_equal(read(llama, TOKENS[500:600]), after_cut)


def test_a_cache_of_a_windows_size_is_restored(model_of, path: Path) -> None:
    """Its cells have another order afterwards, and so have the sums of attention."""
    with closing(tiny_llama(model_of("gemma3"), swa_full=False)) as llama:
        session = open_session(llama, path)
        llama.prefill(TOKENS[:300])
        session.save()
        llama.prefill(TOKENS[300:333])
        session.save()
        expected = read(llama, TOKENS[400:500])
    with closing(reopened(model_of("gemma3"), path, swa_full=False)) as llama:
        assert relative_error(read(llama, TOKENS[400:500]), expected) < 1e-4


def test_recurrent_layers_are_restored(model_of, path: Path) -> None:
    with closing(tiny_llama(model_of("lfm2"))) as llama:
        session = open_session(llama, path)
        llama.prefill(TOKENS[:300])
        session.save()
        llama.prefill(TOKENS[300:333])
        session.save()
        expected = read(llama, TOKENS[400:500])
    with closing(reopened(model_of("lfm2"), path)) as llama:
        assert np.array_equal(read(llama, TOKENS[400:500]), expected)
        llama.reset()
        fresh = read(llama, TOKENS[:333] + TOKENS[400:500])[333:]
        assert np.allclose(fresh, expected, atol=0.1)
        assert not np.allclose(read(llama, TOKENS[400:500]), expected, atol=0.1)


def test_the_answer_to_the_same_prompt_is_the_same(model: Path, path: Path) -> None:
    """A session has no logits, so the last token is read again."""

    def answer(llama: Llama) -> list[int]:
        return list(itertools.islice(llama.generate(TOKENS[:200], temp=0.0), 30))

    with closing(tiny_llama(model)) as llama:
        llama.prefill(TOKENS[:200])
        open_session(llama, path).save()
        expected = answer(llama)
    with closing(reopened(model, path)) as llama:
        counts = []
        evaluate = llama.eval
        llama.eval = lambda tokens: (counts.append(len(tokens)), evaluate(tokens))
        assert answer(llama) == expected
        assert set(counts) == {1}


def test_logprobs_of_a_restored_prompt_are_those_of_a_prompt_that_is_read(
    smollm2_path, path, tmp_path
) -> None:
    """llama_cpp.Llama takes them from the logits of the prompt, which a session does not have."""
    model = random_gguf.llama(tmp_path / "model.gguf", smollm2_path)
    prompt = "Once upon a time there was a king"

    def logprobs(llama: Llama) -> list[float]:
        wanted = {"max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
        return llama.create_completion(prompt, **wanted)["choices"][0]["logprobs"]["token_logprobs"][1:]

    with closing(tiny_llama(model, logits_all=True)) as llama:
        expected = logprobs(llama)
        open_session(llama, path).save()
        tokens = llama.input_ids[: llama.n_tokens].tolist()
    with closing(reopened(model, path, logits_all=True)) as llama:
        assert logprobs(llama) == pytest.approx(expected, abs=1e-4)
        llama.reset()
        llama.scores[:] = 0
        read(llama, tokens)
        assert logprobs(llama) == pytest.approx(expected, abs=1e-4)


def test_a_session_that_is_saved_twice_is_written_once(model: Path, path: Path) -> None:
    with closing(tiny_llama(model)) as llama:
        llama.prefill(TOKENS[:50])
        session = open_session(llama, path)
        session.save()
        before = path.read_bytes(), path.stat().st_mtime_ns
        session.save()
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_an_empty_text_is_a_session_too(model: Path, path: Path) -> None:
    saved(model, path, [])
    with closing(tiny_llama(model)) as llama, open_session(llama, path) as session:
        assert session.tokens == []
        llama.prefill(TOKENS[:20])
    with closing(reopened(model, path)) as llama:
        assert llama.n_tokens == 20


def test_an_exception_within_the_with_block_saves_nothing(model: Path, path: Path) -> None:
    with closing(tiny_llama(model)) as llama:
        with pytest.raises(KeyError), open_session(llama, path):
            llama.prefill(TOKENS[:20])
            raise KeyError
        assert not path.exists()
