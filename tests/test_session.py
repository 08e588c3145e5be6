"""Sessions: what was read once goes on as if it had never been interrupted, or is refused with a reason."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import conformance
import gguf
import numpy as np
import pytest
import random_gguf
from conformance import ROWS, make_model
from hf_checkpoints import convert_weights
from libraries import ROOT, relative_error, run_cli_on_a_full_disk

import yarn_gguf
from yarn_gguf import DynamicScaling, RopeScaling, SessionError, YarnGGUFError, session_file
from yarn_gguf.cli import main, model_options
from yarn_gguf.extend import extend
from yarn_gguf.fingerprint import fingerprints
from yarn_gguf.llama import CACHE_TYPES, Llama
from yarn_gguf.session import Session, scaling_of
from yarn_gguf.session_file import START, read_contents
from yarn_gguf.session_folder import SessionFolder

L = conformance.CONTEXT  # tokens of the original context
TOKENS = np.random.default_rng(1).integers(3, 256, 8 * L).tolist()


@pytest.fixture(scope="module")
def model_of(tmp_path_factory) -> Callable[[str], Path]:
    """A tiny random model of an architecture."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("model")
            made[name] = folder / f"{name}.gguf"
            if name == "lfm2":
                write_lfm2(made[name])
            else:
                row = replace(ROWS[name], config=ROWS[name].config | {"head_dim": 64})
                make_model(row if name == "llama" else ROWS[name], RopeScaling()).save_pretrained(folder)
                convert_weights(folder, made[name], type="f32", scaling=RopeScaling())
        return made[name]

    return make


@pytest.fixture
def model(model_of) -> Path:
    return model_of("llama")


def write_lfm2(path: Path) -> None:
    """Two layers of short convolutions, which are recurrent, around one of attention."""
    width, head, kernel, hidden, vocabulary = 128, 32, 3, 192, 256
    heads = [0, 2, 0]
    writer = gguf.GGUFWriter(path, "lfm2")
    writer.add_context_length(8 * L)
    writer.add_embedding_length(width)
    writer.add_block_count(len(heads))
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(4)
    writer.add_head_count_kv(heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_shortconv_l_cache(kernel)
    writer.add_tokenizer_model("none")
    shapes = {"token_embd": (vocabulary, width), "token_embd_norm": (width,)}
    for i, count in enumerate(heads):
        own = {
            "attn_q_norm": (head,),
            "attn_k_norm": (head,),
            "attn_q": (width, width),
            "attn_k": (count * head, width),
            "attn_v": (count * head, width),
            "attn_output": (width, width),
        }
        recurrent = {
            "shortconv.conv": (width, kernel),
            "shortconv.in_proj": (3 * width, width),
            "shortconv.out_proj": (width, width),
        }
        both = {
            "attn_norm": (width,),
            "ffn_norm": (width,),
            "ffn_gate": (hidden, width),
            "ffn_down": (width, hidden),
            "ffn_up": (hidden, width),
        }
        shapes |= {f"blk.{i}.{name}": shape for name, shape in (both | (own if count else recurrent)).items()}
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = generator.normal(0, 0.15, shape) if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tiny_llama(path: Path, rope_scaling=None, *, n_ctx: int = 8 * L, **kwargs) -> Llama:
    settings = {"n_threads": 1, "n_batch": 64, "verbose": False, **kwargs}
    return Llama(path, n_ctx=n_ctx, rope_scaling=rope_scaling, **settings)


def read(llama: Llama, tokens: list[int]) -> np.ndarray:
    return np.concatenate([part.copy() for part in llama.read_logits(tokens)])


def reopened(path: Path, session: Path, *args, **kwargs) -> Llama:
    llama = tiny_llama(path, *args, **kwargs)
    llama.open_session(session)
    return llama


def saved(model: Path, session: Path, tokens: list[int], **kwargs) -> Path:
    with closing(tiny_llama(model, **kwargs)) as llama:
        llama.prefill(tokens)
        llama.open_session(session).save()
    return session


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a [long] book.session"


# ---- it goes on as if never interrupted ------------------------------------------------------------

F16, F32, Q8_0 = (CACHE_TYPES[name] for name in ("F16", "F32", "Q8_0"))
CACHES = [
    ("llama", {"flash_attn": True}),
    ("llama", {"flash_attn": False}),
    ("llama", {"flash_attn": True, "type_k": Q8_0, "type_v": Q8_0}),
    ("llama", {"flash_attn": False, "type_k": Q8_0}),
    ("llama", {"flash_attn": True, "type_k": F32, "type_v": F16}),
    ("deepseek-v2", {"flash_attn": True}),  # compressed attention: no V
    ("deepseek-v2", {"flash_attn": False}),
]


@pytest.mark.parametrize(("name", "cache"), CACHES, ids=str)
def test_logits_after_reopening_are_those_of_one_run(model_of, path: Path, name: str, cache: dict) -> None:
    """Saved three times on the way: written once, appended to twice."""
    with closing(tiny_llama(model_of(name), **cache)) as llama:
        session = llama.open_session(path)
        for start, stop in [(0, 100), (100, 101), (101, 333)]:
            llama.prefill(TOKENS[start:stop])
            session.save()
            assert session.tokens == TOKENS[:stop]
        expected = read(llama, TOKENS[400:500])
    with closing(tiny_llama(model_of(name), **cache)) as llama:
        assert llama.open_session(path).tokens == TOKENS[:333]
        assert np.array_equal(read(llama, TOKENS[400:500]), expected)


@pytest.mark.parametrize("type_", [F16, F32, Q8_0])
def test_a_change_of_s_rewrites_the_file_and_the_run_goes_on(model: Path, path: Path, type_: int) -> None:
    cache = {"type_k": type_, "type_v": type_, "flash_attn": True}
    with closing(tiny_llama(model, DynamicScaling(), **cache)) as llama:
        session = llama.open_session(path)
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
        assert llama.open_session(path).tokens == TOKENS[: 2 * L - 13]
        assert llama.dynamic_state.factor == factor
        assert np.array_equal(read(llama, TOKENS[2 * L - 13 : 5 * L]), expected)
        assert llama.dynamic_state.factor == last > factor


def test_keys_that_were_rotated_there_and_back_are_written_again(model: Path, path: Path) -> None:
    """s is what it was, and rounding has changed the keys."""
    with closing(tiny_llama(model, DynamicScaling(), type_k=Q8_0, flash_attn=True)) as llama:
        session = llama.open_session(path)
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


def test_a_text_that_was_read_again_under_another_scaling_is_written_again(model: Path, path: Path) -> None:
    with closing(tiny_llama(model, RopeScaling("yarn", 2.0))) as llama:
        llama.prefill(TOKENS[:100])
        session = llama.open_session(path)
        session.save()
        llama.set_rope_scaling(RopeScaling("yarn", 4.0))
        llama.prefill(TOKENS[:100])
        session.save()
        expected = read(llama, TOKENS[100:150])
    with closing(tiny_llama(model)) as llama:
        llama.set_rope_scaling(RopeScaling("yarn", 4.0))
        llama.open_session(path)
        assert np.array_equal(read(llama, TOKENS[100:150]), expected)


def test_a_request_that_is_reopened_keeps_its_s(model: Path, path: Path) -> None:
    scaling = DynamicScaling(policy="request")
    with closing(tiny_llama(model, scaling)) as llama:
        llama.reserve(4 * L)
        llama.prefill(TOKENS[:100])
        assert llama.dynamic_state.factor == 4
        llama.open_session(path).save()
        expected = read(llama, TOKENS[100:200])
    with closing(reopened(model, path, scaling)) as llama:
        assert np.array_equal(read(llama, TOKENS[100:200]), expected)
        assert llama.dynamic_state.factor == 4


@pytest.mark.parametrize("flash_attn", [True, False])
def test_after_a_cut_the_other_branch_is_kept(model: Path, path: Path, flash_attn: bool) -> None:
    """Appended: the cut goes through the middle of a block, whose rest is checked and not used."""
    with closing(tiny_llama(model, flash_attn=flash_attn)) as llama:
        session = llama.open_session(path)
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
        session = llama.open_session(path)
        llama.prefill(TOKENS[:300])
        session.save()
        llama.n_tokens = 280
        session.save()
    with closing(reopened(model, path)) as llama:
        assert llama.n_tokens == 280


def test_questions_after_one_document_keep_the_file_small(model: Path, path: Path) -> None:
    """What earlier questions took is given back now and then."""
    with closing(tiny_llama(model)) as llama:
        session = llama.open_session(path)
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


def test_blocks_are_as_large_as_they_may_be(model: Path, path: Path, monkeypatch) -> None:
    monkeypatch.setattr("yarn_gguf.session._BLOCK", 100_000)
    with closing(tiny_llama(model)) as llama:
        llama.prefill(TOKENS[:900])
        llama.open_session(path).save()
        expected = read(llama, TOKENS[900:950])
    sizes = [block.size for block in read_contents(path).blocks]
    assert len(sizes) > 5
    assert max(sizes) < 110_000
    with closing(reopened(model, path)) as llama:
        assert np.array_equal(read(llama, TOKENS[900:950]), expected)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo3"])
def test_sliding_windows_are_restored(model_of, path: Path, name: str) -> None:
    """All of the text, so that it can be cut anywhere, also after more was read."""
    with closing(tiny_llama(model_of(name))) as llama:
        session = llama.open_session(path)
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
    """Its cells are in another order then, and so are the sums of attention."""
    with closing(tiny_llama(model_of("gemma3"), swa_full=False)) as llama:
        session = llama.open_session(path)
        llama.prefill(TOKENS[:300])
        session.save()
        llama.prefill(TOKENS[300:333])
        session.save()
        expected = read(llama, TOKENS[400:500])
    with closing(reopened(model_of("gemma3"), path, swa_full=False)) as llama:
        assert relative_error(read(llama, TOKENS[400:500]), expected) < 1e-4


def test_recurrent_layers_are_restored(model_of, path: Path) -> None:
    with closing(tiny_llama(model_of("lfm2"))) as llama:
        session = llama.open_session(path)
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
    """Logits are not kept: the last token is read again."""

    def answer(llama: Llama) -> list[int]:
        return list(itertools.islice(llama.generate(TOKENS[:200], temp=0.0), 30))

    with closing(tiny_llama(model)) as llama:
        llama.prefill(TOKENS[:200])
        llama.open_session(path).save()
        expected = answer(llama)
    with closing(reopened(model, path)) as llama:
        counts = []
        evaluate = llama.eval
        llama.eval = lambda tokens: (counts.append(len(tokens)), evaluate(tokens))
        assert answer(llama) == expected
        assert set(counts) == {1}


def test_logprobs_of_a_restored_prompt_are_those_of_one_that_is_read(smollm2_path, path, tmp_path) -> None:
    """llama_cpp.Llama finds them in the logits of the prompt, which a session does not keep."""
    model = random_gguf.llama(tmp_path / "model.gguf", smollm2_path)
    prompt = "Once upon a time there was a king"

    def logprobs(llama: Llama) -> list[float]:
        wanted = {"max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
        return llama.create_completion(prompt, **wanted)["choices"][0]["logprobs"]["token_logprobs"][1:]

    with closing(tiny_llama(model, logits_all=True)) as llama:
        expected = logprobs(llama)
        llama.open_session(path).save()
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
        session = llama.open_session(path)
        session.save()
        before = path.read_bytes(), path.stat().st_mtime_ns
        session.save()
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_nothing_read_is_a_session_too(model: Path, path: Path) -> None:
    saved(model, path, [])
    with closing(tiny_llama(model)) as llama, llama.open_session(path) as session:
        assert session.tokens == []
        llama.prefill(TOKENS[:20])
    with closing(reopened(model, path)) as llama:
        assert llama.n_tokens == 20


def test_an_exception_in_its_block_saves_nothing(model: Path, path: Path) -> None:
    with closing(tiny_llama(model)) as llama:
        with pytest.raises(KeyError), llama.open_session(path):
            llama.prefill(TOKENS[:20])
            raise KeyError
        assert not path.exists()


# ---- never lose what was saved -----------------------------------------------------------------------


def history(model: Path, path: Path) -> list[list[int]]:
    """A file with an append, a cut and another: dead parts and old indices. Its texts, in order."""
    texts = []
    with closing(tiny_llama(model)) as llama:
        session = llama.open_session(path)
        for length, start, stop in [(0, 0, 60), (60, 60, 70), (50, 200, 215)]:
            llama.n_tokens = length
            llama.prefill(TOKENS[start:stop])
            session.save()
            texts.append(session.tokens)
    return texts


def test_a_flipped_byte_anywhere_is_noticed(model: Path, path: Path) -> None:
    history(model, path)
    good = path.read_bytes()
    contents = read_contents(path)
    edges = np.cumsum([START, *(block.size for block in contents.blocks)])
    assert any(block.used < block.count for block in contents.blocks)
    assert sum(block.count == 0 for block in contents.blocks) == 2
    near = [edge + i for edge in edges for i in (-1, 0, 1)]
    positions = {*range(START), *near, *random.Random(0).sample(range(len(good)), 300), len(good) - 1}
    with closing(tiny_llama(model)) as llama:
        for position in sorted(positions):
            damaged = bytearray(good)
            damaged[position] ^= 1 << position % 8
            path.write_bytes(damaged)
            llama.prefill(TOKENS[:3])
            with pytest.raises(
                SessionError, match=r"a \[long\] book\.session: .*(damage|format|cut off|anew)"
            ):
                llama.open_session(path)
        path.write_bytes(good)
        llama.open_session(path)


def test_a_file_that_is_cut_off_is_noticed(model: Path, path: Path) -> None:
    history(model, path)
    good = path.read_bytes()
    with closing(tiny_llama(model)) as llama:
        for length in [0, 1, START - 1, START, START + 100, len(good) // 2, len(good) - 1]:
            path.write_bytes(good[:length])
            with pytest.raises(SessionError, match=r"session: .*: (name another|begin anew)"):
                llama.open_session(path)


def test_damaged_keys_are_read_anew_if_asked_for(model: Path, path: Path) -> None:
    texts = history(model, path)
    damaged = bytearray(path.read_bytes())
    damaged[START + 100] ^= 1
    path.write_bytes(damaged)
    with closing(tiny_llama(model)) as llama:
        with pytest.raises(SessionError, match=r"tokens from 0 on: the file is damaged: with rebuild"):
            llama.open_session(path)
        assert llama.n_tokens == 0
        seen = []
        session = llama.open_session(path, rebuild=True, progress=lambda *done: seen.append(done))
        assert seen[-1] == (65, 65)
        assert llama.input_ids[: llama.n_tokens].tolist() == texts[-1]
        assert session.tokens == texts[-1]
        assert path.read_bytes() == damaged
        session.save()
    with closing(reopened(model, path)) as llama:
        restored = read(llama, TOKENS[300:310])
    with closing(tiny_llama(model)) as llama:
        llama.prefill(texts[-1])
        assert np.array_equal(read(llama, TOKENS[300:310]), restored)


def test_at_every_step_of_a_write_the_file_is_whole(
    model: Path, path: Path, tmp_path: Path, monkeypatch
) -> None:
    """What a crash would leave, before and after each write and in the middle of it."""
    seen: list[bytes] = []
    write_all = session_file._write_all

    def watched(file, data) -> None:
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            file.flush()
            seen.append(path.read_bytes() if path.exists() else b"")
            write_all(file, part)

    monkeypatch.setattr(session_file, "_write_all", watched)
    texts = history(model, path)
    seen.append(path.read_bytes())
    assert len(seen) == 2 * 2 * len(texts) + 1
    copy = tmp_path / "copy.session"
    found = []
    with closing(tiny_llama(model)) as llama:
        for state in seen:
            if state:
                copy.write_bytes(state)
                found.append(texts.index(llama.open_session(copy).tokens))
    assert found == [0] * 4 + [1] * 4 + [2]


def test_what_is_saved_is_on_the_disk_before_it_counts(model: Path, path: Path, monkeypatch) -> None:
    """All else comes before the new header, or the name; and these are there when `save` ends."""
    synced: list[tuple[bytes, bytes]] = []  # what the file has, and what was brought to the disk
    sync = os.fsync

    def watched(descriptor: int) -> None:
        sync(descriptor)
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        data = b"a folder" if is_folder else os.pread(descriptor, 1 << 24, 0)
        synced.append((path.read_bytes() if path.exists() else b"", data))

    monkeypatch.setattr(os, "fsync", watched)
    with closing(tiny_llama(model)) as llama:
        session = llama.open_session(path)
        llama.prefill(TOKENS[:60])
        session.save()
        first = path.read_bytes()
        assert synced == [(b"", first), (first, b"a folder")]
        synced.clear()
        llama.prefill(TOKENS[60:70])
        session.save()
        second = path.read_bytes()
        before = first[:START] + second[START:]
        assert synced == [(before, before), (second, second)]


def test_what_an_interrupted_write_left_is_written_over(model: Path, path: Path) -> None:
    texts = history(model, path)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"torn" * 100_000)
    with closing(tiny_llama(model)) as llama:
        session = llama.open_session(path)
        assert session.tokens == texts[-1]
        llama.prefill(TOKENS[500:502])
        session.save()
        expected = read(llama, TOKENS[300:310])
    assert path.stat().st_size < size + 50_000
    with closing(reopened(model, path)) as llama:
        assert np.array_equal(read(llama, TOKENS[300:310]), expected)


@pytest.mark.parametrize("call", ["fsync", "write"])
@pytest.mark.parametrize("is_append", [True, False])
def test_a_failing_write_leaves_the_file_as_it_was(
    model: Path, path: Path, monkeypatch, call: str, is_append: bool
) -> None:
    saved(model, path, TOKENS[:50])
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(tiny_llama(model)) as llama:
        session = llama.open_session(path)
        llama.n_tokens = 50 if is_append else 1
        llama.prefill(TOKENS[50:60])
        with monkeypatch.context() as patch:
            patch.setattr(*((os, "fsync") if call == "fsync" else (session_file, "_write_all")), fail)
            with pytest.raises(SessionError, match=r"No space left on device.*nothing was changed.*free"):
                session.save(replace=True)
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]
        session.save(replace=True)
        expected = read(llama, TOKENS[300:310])
    with closing(reopened(model, path)) as llama:
        assert np.array_equal(read(llama, TOKENS[300:310]), expected)


@pytest.mark.parametrize("is_append", [True, False])
def test_a_signal_at_the_very_end_of_a_save_does_not_end_the_session(
    model: Path, path: Path, monkeypatch, is_append: bool
) -> None:
    """When the new file, or its new header, is in its place already."""
    saved(model, path, TOKENS[:50])
    before, sync = path.read_bytes(), os.fsync

    def interrupt(descriptor: int) -> None:
        sync(descriptor)
        if path.read_bytes()[:START] != before[:START]:
            raise KeyboardInterrupt

    with closing(tiny_llama(model)) as llama:
        session = llama.open_session(path)
        llama.n_tokens = 50 if is_append else 1
        llama.prefill(TOKENS[50:60])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupt)
            with pytest.raises(KeyboardInterrupt):
                session.save(replace=True)
        assert session.tokens == llama.input_ids[: llama.n_tokens].tolist()
        llama.prefill(TOKENS[60:70])
        session.save()
        expected = read(llama, TOKENS[300:310])
    with closing(reopened(model, path)) as llama:
        assert np.array_equal(read(llama, TOKENS[300:310]), expected)


@pytest.mark.parametrize("other", [TOKENS[300:310], [], TOKENS[:24]])
def test_a_text_that_was_read_since_does_not_take_the_place_of_what_is_saved(
    model: Path, path: Path, other: list[int]
) -> None:
    """As by a request of another thread, or for an embedding."""
    saved(model, path, TOKENS[:50])
    before = path.read_bytes()
    with closing(tiny_llama(model)) as llama:
        refused = pytest.raises(SessionError, match=r"holds 50 tokens.*open.*again, or save\(replace")
        with refused, llama.open_session(path) as session:
            llama.reset()
            llama.prefill(other)
        assert path.read_bytes() == before
        session.save(replace=True)
    assert read_contents(path).tokens.tolist() == other


def test_another_question_to_the_same_document_takes_the_place_of_the_last(model: Path, path: Path) -> None:
    saved(model, path, TOKENS[:50])
    with closing(tiny_llama(model)) as llama, llama.open_session(path):
        llama.n_tokens = 25
        llama.prefill(TOKENS[100:110])
    assert read_contents(path).tokens.tolist() == TOKENS[:25] + TOKENS[100:110]


def test_who_may_read_a_session_stays_as_it_was(model: Path, path: Path) -> None:
    saved(model, path, TOKENS[:50])
    path.chmod(0o600)
    inode = path.stat().st_ino
    with closing(tiny_llama(model)) as llama:
        session = llama.open_session(path)
        llama.n_tokens = 1
        session.save(replace=True)
    assert path.stat().st_ino != inode  # written anew
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_full_disk_is_reported_and_the_session_kept(smollm2_q8: Path, path: Path) -> None:
    arguments = ["run", smollm2_q8, "--session", path, "-t", "2"]
    first = run_cli_on_a_full_disk(*arguments, "--raw", "-n", "2", "-p", "One two three")
    assert first.returncode == 0, first.stderr
    before = path.read_bytes()
    done = run_cli_on_a_full_disk(*arguments, "-n", "2", "-p", "word " * 60)
    assert done.returncode == 1
    assert "cannot be written (File too large); nothing was changed" in done.stderr
    assert done.stderr.count("\n") == 1
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_nothing_that_was_saved(model: Path, path: Path) -> None:
    script = Path(__file__).with_name("session_until_killed.py")
    moments = random.Random(0)
    lengths, torn = set(), 0
    for _ in range(20):
        command = [sys.executable, script, model, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline()
            time.sleep(moments.uniform(0, 1.0))
            process.kill()
            said = process.stdout.read().split()
        offset, length, _ = session_file._parse_header(path, path.read_bytes()[:START])
        torn += path.stat().st_size > offset + length or len(list(path.parent.iterdir())) > 1
        with closing(tiny_llama(model)) as llama:
            tokens = llama.open_session(path).tokens
            read(llama, [3])
        assert tokens == [3 + i % 250 for i in range(len(tokens))]
        # the one that was said last, or the one after it
        assert len(tokens) == int(said[-1]) or 0 < len(tokens) - int(said[-1]) < 200 or int(said[-1]) > 1800
        lengths.add(len(tokens))
    assert len(lengths) > 10
    assert torn > 10  # in the middle of a write
    with closing(tiny_llama(model)) as llama:
        session = llama.open_session(path)
        llama.n_tokens = 1
        session.save()
    assert list(path.parent.iterdir()) == [path]  # temporary files of killed writers are gone


def test_two_who_save_to_one_file_do_not_overwrite_each_other(model: Path, path: Path) -> None:
    saved(model, path, TOKENS[:50])
    with closing(tiny_llama(model)) as one, closing(tiny_llama(model)) as other:
        first, second = one.open_session(path), other.open_session(path)
        one.prefill(TOKENS[50:60])
        first.save()
        other.prefill(TOKENS[70:80])
        with pytest.raises(SessionError, match=r"another has saved to it since it was opened"):
            second.save()
        third = other.open_session(path.with_name("elsewhere.session"))
        third.save()
        one.prefill(TOKENS[80:90])
        first.save()
    with closing(reopened(model, path)) as llama:
        assert llama.n_tokens == 70


def waits(do: Callable[[], object], go_on: Callable[[], object]) -> None:
    """`do` is done after `go_on`, and not before."""
    thread = threading.Thread(target=do)
    thread.start()
    thread.join(0.3)
    is_waiting = thread.is_alive()
    go_on()
    thread.join()
    assert is_waiting


def test_one_process_at_a_time_saves_to_a_folder(model: Path, path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with closing(tiny_llama(model)) as llama:
        llama.prefill(TOKENS[:50])
        session = llama.open_session(path)
        others = os.open(path.parent, os.O_RDONLY)
        fcntl.flock(others, fcntl.LOCK_EX)
        waits(session.save, lambda: os.close(others))
        assert session.tokens == TOKENS[:50]


def test_saving_waits_for_the_request_of_another_thread(model: Path, path: Path) -> None:
    has_begun, go_on = threading.Event(), threading.Event()

    def linger(done: int, total: int) -> None:
        has_begun.set()
        go_on.wait()

    with closing(tiny_llama(model)) as llama:
        session = llama.open_session(path)
        reading = threading.Thread(target=lambda: llama.prefill(TOKENS[:200], linger))
        reading.start()
        has_begun.wait()
        waits(session.save, go_on.set)
        reading.join()
        assert session.tokens == TOKENS[:200]


# ---- what does not suit is refused with a reason ----------------------------------------------------


def refused(model: Path, path: Path, message: str, *args, **kwargs) -> None:
    """And the cache is as it was; and with rebuild the text is read again."""
    with closing(tiny_llama(model, *args, **kwargs)) as llama:
        llama.prefill(TOKENS[:7])
        with pytest.raises(SessionError, match=message):
            llama.open_session(path)
        assert llama.n_tokens == 7
        session = llama.open_session(path, rebuild=True)
        assert llama.input_ids[: llama.n_tokens].tolist() == TOKENS[:100]
        session.save()
    with closing(tiny_llama(model, *args, **kwargs)) as llama:
        llama.prefill(TOKENS[:100])
        expected = read(llama, TOKENS[100:150])
    with closing(reopened(model, path, *args, **kwargs)) as llama:
        assert np.array_equal(read(llama, TOKENS[100:150]), expected)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {"type_k": Q8_0}, "saved with type_k f16, and not q8_0: open the model as it was then"),
        ((), {"type_v": F32}, "type_v f16, and not f32"),
        ((), {"flash_attn": False}, "saved with flash_attn True, and not False"),
        (
            (RopeScaling("yarn", 2.0),),
            {},
            "rope scaling as the file says, and not method yarn, factor 2.0",
        ),
        (
            (DynamicScaling(),),
            {},
            "rope scaling as the file says, and not method yarn, policy growth",
        ),
        ((), {"rope_freq_base": 5000.0}, "rope scaling as the file says, and not rope_freq_base 5000.0"),
        ((), {"kv_overrides": {"x": 1}}, r"saved with kv_overrides None, and not .*'x': 1"),
    ],
    ids=str,
)
def test_what_differs_is_named(model: Path, path: Path, args, kwargs, message) -> None:
    saved(model, path, TOKENS[:100])
    refused(model, path, message, *args, **kwargs)


def test_the_size_of_a_windows_cache_is_named(model_of, path: Path) -> None:
    saved(model_of("gemma2"), path, TOKENS[:100])
    with (
        closing(tiny_llama(model_of("gemma2"), swa_full=False)) as llama,
        pytest.raises(SessionError, match="saved with swa_full True, and not False"),
    ):
        llama.open_session(path)


def test_the_basis_of_quantized_keys_is_named(model: Path, path: Path, monkeypatch) -> None:
    saved(model, path, TOKENS[:100], type_k=Q8_0)
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
    refused(model, path, "saved with LLAMA_ATTN_ROT_DISABLE None, and not 1", type_k=Q8_0)


def test_another_factor_is_named_alone(model: Path, path: Path) -> None:
    with closing(tiny_llama(model, RopeScaling("yarn", 4.0))) as llama:
        llama.prefill(TOKENS[:100])
        llama.open_session(path).save()
    refused(model, path, r"rope scaling factor 4\.0, and not factor 2\.0: open", RopeScaling("yarn", 2.0))


def test_another_version_is_named(model: Path, path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(yarn_gguf, "__version__", "0.0.9")
        saved(model, path, TOKENS[:100])
    refused(model, path, r"saved with library yarn-gguf 0\.0\.9, .* and not yarn-gguf 0\.1\.0")


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        RopeScaling("none"),
        RopeScaling("yarn", 2.0, beta_fast=16.0),
        RopeScaling("longrope", 4.0, L, short_factor=(1.0,) * 32, long_factor=(3.0,) * 32),
        DynamicScaling("ntk", "request", ntk_factor=2.0),
    ],
    ids=str,
)
def test_the_scaling_of_a_file_is_known_without_its_model(model: Path, path: Path, scaling) -> None:
    with closing(tiny_llama(model, scaling)) as llama:
        llama.prefill(TOKENS[:10])
        llama.open_session(path).save()
        contents = read_contents(path)
        assert scaling_of(contents) == llama.rope_scaling
    with closing(reopened(model, path, scaling_of(contents))) as llama:
        assert llama.n_tokens == 10
    of_later = {"rope scaling": {"method": "yarn", "unheard": 1}}
    assert scaling_of(replace(contents, identity=of_later)) is None


def test_a_later_format_is_refused(model: Path, path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(session_file, "FORMAT", 2)
        saved(model, path, TOKENS[:10])
    with closing(tiny_llama(model)) as llama, pytest.raises(SessionError, match="a session of format 2, and"):
        llama.open_session(path)


def test_another_model_is_named(model_of, path: Path) -> None:
    saved(model_of("qwen2"), path, TOKENS[:100])
    refused(model_of("llama"), path, r"saved by another model \(qwen2\.gguf\) than .*llama\.gguf: open")


def test_a_weight_that_changed_makes_another_model(model: Path, path: Path, tmp_path: Path) -> None:
    saved(model, path, TOKENS[:100])
    changed = tmp_path / "llama.gguf"
    data = bytearray(model.read_bytes())
    data[-5] ^= 1
    changed.write_bytes(data)
    with closing(tiny_llama(changed)) as llama, pytest.raises(SessionError, match="saved by another model"):
        llama.open_session(path)


def test_a_file_that_changes_later_is_not_the_model_that_was_loaded(
    model: Path, path: Path, tmp_path: Path
) -> None:
    changed = shutil.copy(model, tmp_path / "copy.gguf")
    with closing(tiny_llama(changed)) as llama:
        session = llama.open_session(path)
        llama.prefill(TOKENS[:100])
        temporary = tmp_path / "new.gguf"
        temporary.write_bytes(changed.read_bytes() + b"more")
        temporary.replace(changed)
        session.save()
    with closing(tiny_llama(changed)) as llama, pytest.raises(SessionError, match="saved by another model"):
        llama.open_session(path)
    with closing(reopened(model, path)) as llama:
        assert llama.n_tokens == 100


@pytest.mark.parametrize("changed", ["model", "adapter"])
def test_a_file_that_changed_before_the_session_was_opened_gets_none(path, tmp_path, changed) -> None:
    """What was read by the old one would count as read by the new one."""
    files = {"model": random_gguf.llama(tmp_path / "model.gguf")}
    files["adapter"] = random_gguf.adapter(tmp_path / "lora.gguf")
    with closing(tiny_llama(files["model"], lora_path=str(files["adapter"]))) as llama:
        llama.prefill(TOKENS[:100])
        Path(shutil.copy(files[changed], tmp_path / "new")).replace(files[changed])
        with pytest.raises(SessionError, match=f"{files[changed].name} was changed since it was loaded"):
            llama.open_session(path)
        assert llama.n_tokens == 100


def refuses_adapter(model: Path, path: Path, **arguments) -> None:
    with closing(tiny_llama(model, **arguments)) as llama, pytest.raises(SessionError, match="LoRA adapter"):
        llama.open_session(path)


def test_an_adapter_counts_as_it_was_when_it_was_loaded(path: Path, tmp_path: Path) -> None:
    model, lora = random_gguf.llama(tmp_path / "model.gguf"), tmp_path / "lora.gguf"
    random_gguf.adapter(lora)
    with closing(tiny_llama(model, lora_path=str(lora))) as llama:
        session = llama.open_session(path)
        llama.prefill(TOKENS[:100])
        lora.unlink()
        session.save()
    random_gguf.adapter(lora)
    with closing(reopened(model, path, lora_path=str(lora))) as llama:
        assert llama.n_tokens == 100
    for other in ({"lora_path": None}, {"lora_path": str(lora), "lora_scale": 0.5}):
        refuses_adapter(model, path, **other)
    random_gguf.adapter(lora, tensor="blk.1.attn_q.weight")
    refuses_adapter(model, path, lora_path=str(lora))


def test_a_model_that_was_extended_in_place_is_another(
    smollm2_path: Path, path: Path, tmp_path: Path
) -> None:
    """Its scaling stands behind the tokenizer's megabytes, and the file stays as large."""
    model = tmp_path / "model.gguf"
    extend(smollm2_path, RopeScaling("yarn", 4.0), output=model)
    with closing(tiny_llama(model)) as llama:
        llama.prefill(TOKENS[:20])
        llama.open_session(path).save()
    size = model.stat().st_size
    extend(model, RopeScaling("yarn", 2.0))
    assert model.stat().st_size == size
    with closing(tiny_llama(model)) as llama, pytest.raises(SessionError, match="saved by another model"):
        llama.open_session(path)


def test_every_part_of_a_split_model_counts(tmp_path: Path) -> None:
    for i in (1, 2):
        (tmp_path / f"m-0000{i}-of-00002.gguf").write_bytes(b"part" * i)
    before = fingerprints(tmp_path / "m-00001-of-00002.gguf")
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(b"other")
    after = fingerprints(tmp_path / "m-00001-of-00002.gguf")
    assert len(before) == len(after) == 2
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


def test_a_link_to_a_session_stays_one(model: Path, path: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    saved(model, tmp_path / "disk" / "a.session", TOKENS[:50])
    path.symlink_to(tmp_path / "disk" / "a.session")
    with closing(reopened(model, path)) as llama:
        session = llama.open_session(path)
        llama.n_tokens = 1
        session.save(replace=True)
    assert path.is_symlink()
    assert len(read_contents(path).tokens) == 1


def test_a_disk_that_fails_is_damage(model: Path, path: Path, monkeypatch) -> None:
    saved(model, path, TOKENS[:50])

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(session_file, "_fill", fail)
    with closing(tiny_llama(model)) as llama:
        with pytest.raises(SessionError, match=r"cannot be read \(Input/output error\): the file is damaged"):
            llama.open_session(path)
        llama.open_session(path, rebuild=True)
        assert llama.n_tokens == 50


def test_tokens_of_another_vocabulary_are_not_read_anew(model: Path, smollm2_q8: Path, path: Path) -> None:
    saved(model, path, TOKENS[:100])
    message = r"another vocabulary than .*\(llama\.gguf\), or begin anew"
    with (
        closing(Llama(smollm2_q8, n_ctx=256, verbose=False)) as llama,
        pytest.raises(SessionError, match=message),
    ):
        llama.open_session(path, rebuild=True)


def test_longrope_of_another_context_is_refused_by_the_library(model: Path, path: Path) -> None:
    """Which of its two tables holds depends on n_ctx."""
    scaling = RopeScaling("longrope", 4.0, L, short_factor=(1.0,) * 32, long_factor=(3.0,) * 32)
    with closing(tiny_llama(model, scaling, n_ctx=L)) as llama:
        llama.prefill(TOKENS[:100])
        llama.open_session(path).save()
    with closing(tiny_llama(model, scaling, n_ctx=2 * L)) as llama:
        with pytest.raises(SessionError, match=r"book\.session: .*another rope scaling.*with rebuild"):
            llama.open_session(path)
        assert llama.n_tokens == 0
        llama.open_session(path, rebuild=True)
        assert llama.n_tokens == 100


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_context_that_is_too_small_is_named(model: Path, path: Path, rebuild: bool) -> None:
    """A rebuild needs room for the text."""
    saved(model, path, TOKENS[:300])
    with closing(tiny_llama(model, n_ctx=256)) as llama:
        llama.prefill(TOKENS[:5])
        with pytest.raises(SessionError, match=r"300 tokens, and n_ctx is 256: open .* n_ctx \(-c\) of 300"):
            llama.open_session(path, rebuild=rebuild)
        assert llama.n_tokens == 5


def test_a_context_that_is_just_filled_is_enough(model_of, path: Path) -> None:
    for name in ("llama", "gemma3"):
        saved(model_of(name), path, TOKENS[:256])
        with closing(reopened(model_of(name), path, n_ctx=256)) as llama:
            assert llama.n_tokens == 256
        path.unlink()


def test_what_is_no_longer_used_of_a_block_needs_room_too(model: Path, path: Path) -> None:
    with closing(tiny_llama(model)) as llama:
        session = llama.open_session(path)
        llama.prefill(TOKENS[:300])
        session.save()
        llama.n_tokens = 240
        session.save()
    with closing(tiny_llama(model, n_ctx=256)) as llama:
        with pytest.raises(SessionError, match=r"300 tokens, and n_ctx is 256"):
            llama.open_session(path)
        assert llama.open_session(path, rebuild=True).tokens == TOKENS[:240]


def test_a_folder_that_is_missing_is_named_before_anything_is_read(model: Path, tmp_path: Path) -> None:
    with closing(tiny_llama(model)) as llama, pytest.raises(SessionError, match="missing is no folder"):
        llama.open_session(tmp_path / "missing" / "a.session")


def test_a_file_of_another_kind_is_refused(model: Path) -> None:
    with closing(tiny_llama(model)) as llama, pytest.raises(SessionError, match="no file of a session"):
        llama.open_session(model)


def test_a_cache_that_was_shifted_is_refused(model: Path, path: Path) -> None:
    with closing(tiny_llama(model)) as llama:
        llama.prefill(TOKENS[:100])
        llama._ctx.kv_cache_seq_rm(0, 0, 10)
        with pytest.raises(SessionError, match=r"positions 10 to 99, .*without shifts"):
            llama.open_session(path).save()
    assert not path.exists()


# ---- a folder of sessions ---------------------------------------------------------------------------


@pytest.fixture
def filled(model: Path, tmp_path: Path) -> Iterator[tuple[Llama, SessionFolder, dict[str, Path]]]:
    """Sessions of 100, 150 (which begins with the first) and 80 other tokens."""
    folder = SessionFolder(tmp_path / "sessions", max_bytes=10**9)
    with closing(tiny_llama(model)) as llama:
        paths = {}
        for i, (name, tokens) in enumerate(
            {"short": TOKENS[:100], "long": TOKENS[:100] + TOKENS[300:350], "other": TOKENS[500:580]}.items()
        ):
            llama.reset()
            llama.prefill(tokens)
            session = Session(llama, folder.folder / f"{name}.session")
            session.save()
            os.utime(session.path, ns=(i, i))
            paths[name] = session.path
        yield llama, folder, paths


def test_the_longest_common_prefix_is_found(filled) -> None:
    llama, folder, paths = filled
    wanted = TOKENS[:100] + TOKENS[300:320] + TOKENS[700:710]
    before = paths["long"].read_bytes()
    session = folder.open(llama, wanted)
    assert llama.input_ids[: llama.n_tokens].tolist() == wanted[:120]
    assert session.path not in paths.values()
    llama.prefill(wanted[120:])
    session.save()
    assert paths["long"].read_bytes() == before
    expected = read(llama, TOKENS[800:810])
    assert folder.open(llama, [*wanted, 5]).path == session.path
    assert np.array_equal(read(llama, TOKENS[800:810]), expected)


def test_a_session_that_is_a_beginning_is_gone_on_with(filled) -> None:
    llama, folder, paths = filled
    session = folder.open(llama, TOKENS[500:600])
    assert session.path == paths["other"]
    assert llama.n_tokens == 80
    llama.prefill(TOKENS[580:600])
    session.save()
    assert len(read_contents(paths["other"]).tokens) == 100


def test_the_notes_of_a_session_that_is_gone_on_with_stay(filled) -> None:
    """A chat's messages, for one."""
    llama, folder, paths = filled
    session = llama.open_session(paths["short"])
    session.notes = {"messages": ["hello"]}
    session.save()
    folder.open(llama, TOKENS[:100]).save()
    assert llama.open_session(paths["short"]).notes == {"messages": ["hello"]}


def test_nothing_in_common_begins_anew(filled) -> None:
    llama, folder, _ = filled
    session = folder.open(llama, TOKENS[900:950])
    assert llama.n_tokens == 0
    assert session.tokens == []
    llama.prefill(TOKENS[900:950])
    session.save()
    assert len(list(folder.folder.iterdir())) == 4


def test_damaged_and_foreign_sessions_are_passed_over(filled, model_of) -> None:
    llama, folder, paths = filled
    data = bytearray(paths["long"].read_bytes())
    data[START + 50] ^= 1
    paths["long"].write_bytes(data)
    (folder.folder / "junk.session").write_text("junk")
    saved(model_of("qwen2"), folder.folder / "foreign.session", TOKENS[:140])
    assert folder.open(llama, TOKENS[:100] + TOKENS[300:350]).path == paths["short"]
    assert llama.n_tokens == 100


def test_recurrent_layers_need_all_of_a_session(model_of, tmp_path: Path) -> None:
    folder = SessionFolder(tmp_path, max_bytes=10**9)
    saved(model_of("lfm2"), tmp_path / "a.session", TOKENS[:100])
    with closing(tiny_llama(model_of("lfm2"))) as llama:
        folder.open(llama, TOKENS[:90])
        assert llama.n_tokens == 0
        folder.open(llama, TOKENS[:110])
        assert llama.n_tokens == 100


def test_those_that_were_longest_not_used_are_removed(filled) -> None:
    llama, folder, paths = filled
    folder.open(llama, TOKENS[:100])  # now the others are older
    folder.max_bytes = sum(path.stat().st_size for path in paths.values())
    session = folder.open(llama, TOKENS[900:910])
    llama.prefill(TOKENS[900:910])
    session.save()
    assert sorted(path.name for path in folder.folder.iterdir()) == sorted(
        ["other.session", "short.session", session.path.name]
    )
    folder.max_bytes = 1
    (folder.folder / ".gone.session.abc.tmp").write_text("of a killed process")
    llama.prefill(TOKENS[910:920])
    session.save()
    assert list(folder.folder.iterdir()) == [session.path]


def test_a_session_that_was_evicted_while_open_is_written_whole(filled) -> None:
    llama, folder, paths = filled
    session = folder.open(llama, TOKENS[500:600])
    paths["other"].unlink()
    llama.prefill(TOKENS[580:600])
    session.save()
    expected = read(llama, TOKENS[800:810])
    folder.open(llama, TOKENS[500:600])
    assert np.array_equal(read(llama, TOKENS[800:810]), expected)


# ---- the command ----------------------------------------------------------------------------------


def command(*args: object) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "yarn_gguf", "run", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)


def test_run_goes_on_where_it_ended_in_a_new_process(smollm2_q8: Path, path: Path) -> None:
    questions = ["My name is Bob. Name three colours.", "Which is the first?", "What is my name?"]
    options = ["--session", path, "-n", "16", "-t", "2"]
    answers = [command(smollm2_q8, "-p", question, *options) for question in questions]
    assert [answer.returncode for answer in answers] == [0, 0, 0], answers[0].stderr
    contents = read_contents(path)
    with closing(Llama(smollm2_q8, n_ctx=1024, n_threads=2, flash_attn=True, verbose=False)) as llama:
        text = llama.detokenize(contents.tokens.tolist(), special=True).decode()
    for question, answer in zip(questions, answers, strict=True):
        turn = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer.stdout.rstrip()}"
        assert turn in text
    assert text.count("<|im_start|>system") == 1
    assert text.count("<|im_end|>\n<|im_start|>user") == 3


def test_run_reads_nothing_for_a_session_that_it_cannot_save(
    smollm2_q8: Path, path: Path, monkeypatch, capsys
) -> None:
    saved(smollm2_q8, path, [1, 2, 3], n_ctx=256)
    monkeypatch.setattr(os, "access", lambda file, mode: file != path)
    monkeypatch.setattr(model_options, "load", None)  # nobody gets as far
    assert main(["run", str(smollm2_q8), "--session", str(path), "-p", "And then?"]) == 1
    assert f"{path} cannot be written to: check its rights" in capsys.readouterr().err


def test_rebuild_without_a_session_is_refused(smollm2_q8: Path) -> None:
    answer = command(smollm2_q8, "-p", "hi", "--rebuild")
    assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
    assert "give --session FILE" in answer.stderr


def test_a_template_that_leaves_out_answers_is_refused(smollm2_q8: Path, monkeypatch) -> None:
    from yarn_gguf import prompt

    monkeypatch.setattr(prompt, "_formatted", lambda *_: "no turns at all")
    with pytest.raises(YarnGGUFError, match="leaves out answers"):
        prompt.next_turn_tokens(smollm2_q8, "text", chat=True)


def test_run_names_what_does_not_suit_and_rebuilds(smollm2_q8: Path, path: Path) -> None:
    options = ["--session", path, "-n", "4", "-t", "2", "-p", "Hello."]
    assert command(smollm2_q8, *options).returncode == 0
    other = command(smollm2_q8, *options, "--dynamic")
    assert other.returncode == 1
    assert "rope scaling as the file says, and not method yarn" in other.stderr
    assert "Traceback" not in other.stderr
    rebuilt = command(smollm2_q8, *options, "--dynamic", "--rebuild")
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert read_contents(path).identity["rope scaling"]["policy"] == "growth"
    too_small = command(smollm2_q8, *options, "--dynamic", "-c", "32")
    assert too_small.returncode == 1
    assert "--ctx-size 32 cannot hold" in too_small.stderr
    shutil.copy(smollm2_q8, path)
    assert "no file of a session" in command(smollm2_q8, *options).stderr
