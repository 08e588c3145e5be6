"""Dynamic scaling: saved states carry their factor, and suit contexts of the same scaling."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from dynamics import L, feed, static_logits, tiny_llama
from libraries import relative_error
from reading import read

from yarn_gguf import DynamicScaling, RopeScaling, RopeScalingError
from yarn_gguf.run.llama import Llama, llama_cpp


def test_a_state_goes_to_a_context_at_another_factor(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    with closing(tiny_llama(path, DynamicScaling())) as llama:
        read(llama, tokens[: 4 * L])
        state = llama.save_state()
        expected = read(llama, tokens[4 * L : 4 * L + 3])
    with closing(tiny_llama(path, DynamicScaling())) as other:
        read(other, tokens[: 2 * L])
        other.load_state(state)
        assert other.dynamic_state.factor == pytest.approx(4)
        assert np.array_equal(read(other, tokens[4 * L : 4 * L + 3]), expected)


@pytest.mark.usefixtures("two_sequences")
def test_a_sequence_restored_beside_another_brings_both_to_one_factor(checkpoint, tokens) -> None:
    _, path = checkpoint("llama", layers=1)
    with closing(tiny_llama(path, DynamicScaling())) as llama:
        read(llama, tokens[: 4 * L])
        size = llama_cpp.llama_state_seq_get_size(llama._ctx.ctx, 0)
        saved = (llama_cpp.ctypes.c_uint8 * size)()
        assert llama_cpp.llama_state_seq_get_data(llama._ctx.ctx, saved, size, 0) == size
    with closing(tiny_llama(path, DynamicScaling())) as other:
        feed(other, tokens[: 2 * L], sequence=1)
        assert llama_cpp.llama_state_seq_set_data(other._ctx.ctx, saved, size, 0) == size
        for sequence, length in ((1, 2 * L), (0, 4 * L)):
            got = feed(other, [7], sequence=sequence, first=length)
            scaling = RopeScaling("yarn", other.dynamic_state.factor, L)
            direct = static_logits(path, [*tokens[:length], 7], scaling)[-1:]
            assert relative_error(got, direct) < 1e-4


@pytest.mark.parametrize("scaling", ["none", RopeScaling("yarn", 4.0, L), DynamicScaling()])
def test_a_state_that_is_saved_right_after_a_context_shift_has_the_shifted_keys(
    checkpoint, tokens, scaling
) -> None:
    """A shift waits for the next batch. An unpatched state had the new positions and the old keys."""
    _, path = checkpoint("llama")
    with closing(tiny_llama(path, scaling)) as llama:
        read(llama, tokens[: 2 * L])
        memory = llama_cpp.llama_get_memory(llama._ctx.ctx)
        llama_cpp.llama_memory_seq_rm(memory, 0, 0, 100)
        llama_cpp.llama_memory_seq_add(memory, 0, 100, -1, -100)
        llama.n_tokens -= 100
        state = llama.save_state()
        expected = read(llama, tokens[2 * L : 2 * L + 3])
    with closing(tiny_llama(path, scaling)) as other:
        other.load_state(state)
        assert relative_error(read(other, tokens[2 * L : 2 * L + 3]), expected) < 1e-4


def test_a_state_saved_within_a_request_goes_on_under_its_factor(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    dynamic = DynamicScaling.of(policy="request")
    with closing(tiny_llama(path, dynamic)) as llama:
        llama.reserve(3 * L)
        read(llama, tokens[: 2 * L])
        state = llama.save_state()
        expected = read(llama, tokens[:3])
        assert llama.dynamic_state.factor == 3
    with closing(tiny_llama(path, dynamic)) as other:
        other.load_state(state)
        assert np.array_equal(read(other, tokens[:3]), expected)


def test_after_a_refused_state_the_text_is_still_cached(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    with closing(tiny_llama(path, RopeScaling("yarn", 4.0, L))) as llama:
        read(llama, tokens[:300])
        state = llama.save_state()
    with closing(tiny_llama(path, DynamicScaling())) as llama:
        expected = read(llama, tokens[:51])[-1:]
        with pytest.raises(RopeScalingError):
            llama.load_state(state)
        assert llama.n_tokens == 51
        llama.n_tokens = 50
        assert relative_error(read(llama, tokens[50:51]), expected) < 1e-5


@pytest.mark.parametrize("other", ["none", DynamicScaling()], ids=["static", "dynamic"])
@pytest.mark.parametrize("saved", [{"yarn_attn_factor": 1.5}, {"rope_freq_base": 5e5}], ids=str)
def test_a_state_of_another_temperature_or_base_is_refused(checkpoint, tokens, saved: dict, other) -> None:
    _, path = checkpoint("llama")
    with closing(Llama(path, n_ctx=L, verbose=False, rope_scaling_type=0, **saved)) as llama:
        read(llama, tokens[:10])
        state = llama.save_state()
    with (
        closing(Llama(path, n_ctx=L, verbose=False, rope_scaling=other)) as llama,
        pytest.raises(RopeScalingError, match="another rope scaling"),
    ):
        llama.load_state(state)


@pytest.mark.parametrize(
    "other",
    [
        "none",
        RopeScaling("yarn", 4.0, L),
        DynamicScaling.of("linear"),
        DynamicScaling.of("by-parts"),
        DynamicScaling.of(original_max_position_embeddings=L // 2),
    ],
    ids=["none", "static", "another method", "another temperature", "another context"],
)
def test_a_state_of_another_scaling_is_refused(checkpoint, tokens, other) -> None:
    _, path = checkpoint("llama")
    with closing(tiny_llama(path, DynamicScaling())) as llama:
        read(llama, tokens[: 2 * L])
        state = llama.save_state()
    with (
        closing(tiny_llama(path, other)) as llama,
        pytest.raises(RopeScalingError, match="another rope scaling"),
    ):
        llama.load_state(state)


@pytest.mark.parametrize(
    ("saved", "other"),
    [
        (RopeScaling("yarn", 4.0, L, ramp="rotations"), RopeScaling("yarn", 4.0, L, truncate=False)),
        (DynamicScaling.of(ramp="rotations"), DynamicScaling()),
        (DynamicScaling.of(beta_fast=16.0), DynamicScaling()),
        (RopeScaling("yarn", 4.0, L, ramp="rotations"), RopeScaling("yarn", 4.0, L)),
        (RopeScaling("yarn", 4.0, L), RopeScaling("yarn", 4.0, L, ramp="rotations")),
    ],
    ids=["static", "ramp", "beta_fast", "no table", "a table"],
)
def test_a_state_of_other_frequencies_is_refused_even_with_equal_factor_and_temperature(
    checkpoint, tokens, saved, other
) -> None:
    _, path = checkpoint("llama")
    with closing(tiny_llama(path, saved)) as llama:
        read(llama, tokens[: 3 * L])
        state = llama.save_state()
    with (
        closing(tiny_llama(path, other)) as llama,
        pytest.raises(RopeScalingError, match="another rope scaling"),
    ):
        llama.load_state(state)


CHAT = """
import json, pickle, sys
from yarn_gguf import DynamicScaling
from yarn_gguf.run.llama import Llama, llama_cpp

request = json.load(sys.stdin)
llama = Llama(request["model"], n_ctx=2048, n_batch=128, verbose=False,
              rope_scaling=DynamicScaling.of(original_max_position_embeddings=256))

def write(tokens, count):
    for _ in range(count):
        logits = [part[-1].copy() for part in llama.read_logits(tokens)][-1]
        tokens = [int(logits.argmax())]
        said.append(tokens[0])
    return tokens

said = []
if request["load"]:
    with open(request["load"], "rb") as file:
        state, last = pickle.load(file)
    llama.load_state(state)
else:
    last = write(request["tokens"][:200], 80)             # crosses 256
    last = write(last + request["tokens"][200:500], 100)  # and 512
    memory = llama_cpp.llama_get_memory(llama._ctx.ctx)
    llama_cpp.llama_memory_seq_rm(memory, 0, 16, 116)     # a context shift
    llama_cpp.llama_memory_seq_add(memory, 0, 116, -1, -100)
    llama.n_tokens -= 100
    last = write(last + request["tokens"][500:1000], 10)  # and 1024
    if request["save"]:
        with open(request["save"], "wb") as file:
            pickle.dump((llama.save_state(), last), file)
        sys.exit()
said.clear()
write(last, 40)
print(json.dumps([said, llama.dynamic_state.factor]))
"""


def test_a_chat_goes_on_after_a_shift_a_save_and_a_restore_in_another_process(
    smollm2_q8, prose_tokens, tmp_path: Path
) -> None:
    def chat(**request) -> list:
        request = {"model": str(smollm2_q8), "tokens": prose_tokens[:1000], "load": "", "save": ""} | request
        command = [sys.executable, "-c", CHAT]
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout or "[]")

    state = str(tmp_path / "state")
    never_saved = chat()
    chat(save=state)
    restored = chat(load=state)
    assert never_saved == restored
    assert len(never_saved[0]) == 40
    assert never_saved[1] > 4
