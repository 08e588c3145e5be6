"""Dynamic scaling: the factor follows the text, and the cached keys follow the factor."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import conformance
import numpy as np
import pytest
import transformers
from conformance import ROWS, THETA, make_model
from hf_checkpoints import convert_weights
from libraries import relative_error
from pre_rope_cache import Oracle
from tiny_gguf import write_tiny

from yarn_gguf import DynamicScaling, RopeScaling, RopeScalingError, extend, native
from yarn_gguf.dynamic import METHODS, dynamic_of
from yarn_gguf.gguf_rope import read_model
from yarn_gguf.llama import Llama, llama_cpp
from yarn_gguf.rope import inverse_frequencies

L = conformance.CONTEXT
TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2}  # enum ggml_type
F32 = {"type_k": TYPES["f32"], "type_v": TYPES["f32"]}


def tiny_llama(path: Path, rope_scaling=None, *, n_ctx: int = 16 * L, **kwargs) -> Llama:
    return Llama(path, n_ctx=n_ctx, rope_scaling=rope_scaling, verbose=False, **(F32 | kwargs))


def read(llama: Llama, tokens: list[int]) -> np.ndarray:
    return np.concatenate([part.copy() for part in llama.read_logits(tokens)])


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return np.random.default_rng(1).integers(3, 256, 8 * L).tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Iterator:
    """Callable: (row's name, layers) -> (transformers model, GGUF file), unscaled."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    made = {}

    def make(name: str, layers: int = 2) -> tuple[transformers.PreTrainedModel, Path]:
        if (name, layers) not in made:
            row = ROWS[name]
            if layers == 1:
                wide = (
                    {"head_dim": 64} if name == "qwen3" else {}
                )  # from where quantized K has a basis of its own
                row = replace(row, config=row.config | {"num_hidden_layers": 1} | wide)
            model = make_model(row, RopeScaling())
            folder = tmp_path_factory.mktemp("checkpoint")
            model.save_pretrained(folder)
            convert_weights(folder, folder / "model.gguf", type="f32", scaling=RopeScaling())
            made[name, layers] = model, folder / "model.gguf"
        return made[name, layers]

    return make


def feed(llama: Llama, tokens: list[int], *, sequence: int, first: int = 0, context=None) -> np.ndarray:
    """Logits of the last token, read into a sequence of the caller's choice."""
    context = context or llama._ctx
    for start in range(0, len(tokens), llama.n_batch):
        part = tokens[start : start + llama.n_batch]
        batch = llama_cpp.llama_batch_init(len(part), 0, 1)
        batch.n_tokens = len(part)
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.logits[i] = token, first + start + i, i == len(part) - 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        assert llama_cpp.llama_decode(context.ctx, batch) == 0
        llama_cpp.llama_batch_free(batch)
    logits = llama_cpp.llama_get_logits(context.ctx)
    return np.ctypeslib.as_array(logits, shape=(1, llama.n_vocab())).copy()


# ---- the oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["growth", "exact"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gemma3"])
def test_a_cache_kept_before_rope_gives_the_same_logits_at_every_step(
    checkpoint, tokens, name: str, method: str, policy: str
) -> None:
    model, path = checkpoint(name)
    row = ROWS[name]
    oracle = Oracle(model, windows_are_scaled=not row.nested)
    dynamic = DynamicScaling(method, policy)
    chunks = [200, 103, 1, 1, 300, 1, 1, 1, 412, *[1] * 12, 500, 1, 1]
    position, factors = 0, []
    with closing(tiny_llama(path, dynamic, n_batch=512)) as llama:
        for count in chunks:
            chunk = tokens[position : position + count]
            got = read(llama, chunk)
            factors.append(llama.dynamic_state.factor)
            table = RopeScaling(method, factors[-1], L).frequencies(row.dim, THETA)
            expected = oracle.read(chunk, *table, inverse_frequencies(row.dim, THETA))
            position += count
            assert relative_error(got, expected) <= 1e-3, f"after {position} tokens"
            assert factors[-1] >= position / L
        assert factors == sorted(factors)
        assert factors[0] == 1
        # of the six steps of growth, two are taken by a single token
        assert len(set(factors)) == {"growth": 7, "exact": len(chunks)}[policy]
        if policy == "exact":
            assert factors[-1] == position / L


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_s_changes_with_every_ubatch_of_a_batch_that_needs_it(checkpoint, tokens, name: str) -> None:
    model, path = checkpoint(name)
    row, ubatch = ROWS[name], 128
    oracle = Oracle(model, windows_are_scaled=not row.nested)
    with closing(tiny_llama(path, DynamicScaling(), n_batch=6 * L, n_ubatch=ubatch)) as llama:
        got = read(llama, tokens[: 6 * L])
        assert llama.dynamic_state.rotations == 10
    for start in range(0, 6 * L, ubatch):
        steps = np.ceil(8 * np.log2(max(1, (start + ubatch) / L)))
        table = RopeScaling("yarn", 2 ** (steps / 8), L).frequencies(row.dim, THETA)
        chunk = slice(start, start + ubatch)
        expected = oracle.read(tokens[chunk], *table, inverse_frequencies(row.dim, THETA))
        assert relative_error(got[chunk], expected) <= 1e-3, f"from {start} on"


def test_transformers_dynamic_ntk_with_its_factor_is_followed(checkpoint, tokens) -> None:
    """transformers' own "dynamic", on a prompt in one piece: its formula, its model."""
    _, path = checkpoint("llama")
    own = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": THETA}
    config = transformers.AutoConfig.for_model("llama", **(conformance._BASE | {"rope_parameters": own}))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.load_state_dict(checkpoint("llama")[0].state_dict())
    prompt = tokens[: 3 * L]
    expected = model(conformance.torch.tensor([prompt])).logits[0].detach().numpy()
    dynamic = DynamicScaling("ntk", "exact", ntk_factor=2.0)
    with closing(tiny_llama(path, dynamic, n_batch=4 * L, n_ubatch=4 * L)) as llama:
        assert relative_error(read(llama, prompt), expected) < 1e-4


# ---- one layer: its keys do not depend on the factor, so after any growth its logits are static ones


def static_logits(path: Path, tokens: list[int], scaling: RopeScaling, **kwargs) -> np.ndarray:
    with closing(tiny_llama(path, scaling, **kwargs)) as llama:
        return read(llama, tokens)


# compressed attention has one type for K and V, and a quantized V needs flash attention
KINDS_OF_CACHE = [
    (name, type_, flash_attn)
    for name in ("qwen3", "phi3, 3/4 rotary", "deepseek-v2")
    for type_ in TYPES
    for flash_attn in (False, True)
    if flash_attn or name != "deepseek-v2" or type_ == "f32"
]


@pytest.mark.parametrize(("name", "type_", "flash_attn"), KINDS_OF_CACHE)
def test_growth_to_eight_times_the_context_costs_little_more_than_the_cache_type_itself(
    checkpoint, tokens, name: str, type_: str, flash_attn: bool
) -> None:
    """The drift of 13 rotations: measured, up to 3.4 times the error of writing quantized K once."""
    _, path = checkpoint(name, layers=1)
    type_v = TYPES[type_ if flash_attn else "f32"]
    cache = {"type_k": TYPES[type_], "type_v": type_v, "flash_attn": flash_attn, "n_batch": 128}
    scaling = RopeScaling("yarn", 8.0, L)
    with closing(tiny_llama(path, DynamicScaling(), **cache)) as llama:
        grown = read(llama, tokens)[-64:]
        assert llama.dynamic_state.factor == pytest.approx(8)
        assert llama.dynamic_state.rotations == 13
    exact = static_logits(path, tokens, scaling, n_batch=128)[-64:]
    direct = static_logits(path, tokens, scaling, **cache)[-64:]
    allowed = {"f32": 1e-3 if flash_attn else 1e-5, "f16": 5e-3}.get(type_, 4 * relative_error(direct, exact))
    assert relative_error(grown, exact) < allowed


def test_cutting_the_cache_lowers_the_factor_again(checkpoint, tokens) -> None:
    _, path = checkpoint("llama", layers=1)
    with closing(tiny_llama(path, DynamicScaling())) as llama:
        read(llama, tokens[: 6 * L])
        assert llama.dynamic_state.factor == pytest.approx(2 ** (21 / 8))  # a step ahead of 6
        llama.n_tokens = L - 1
        got = read(llama, tokens[L - 1 : L])
        assert llama.dynamic_state.factor == 1
    plain = static_logits(path, tokens[:L], RopeScaling())[-1:]
    assert relative_error(got, plain) < 1e-4


def test_a_cleared_cache_begins_unscaled_without_rotating(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    with closing(tiny_llama(path, DynamicScaling())) as llama:
        first = read(llama, tokens[:L])
        read(llama, tokens[: 2 * L])
        rotations = llama.dynamic_state.rotations
        llama.reset()
        assert np.array_equal(read(llama, tokens[:L]), first)
        assert (llama.dynamic_state.factor, llama.dynamic_state.rotations) == (1, rotations)


def test_a_context_shift_under_dynamic_scaling_keeps_the_keys_right(checkpoint, tokens) -> None:
    """Drop the first half, move the rest down: what follows sees the second half alone."""
    _, path = checkpoint("llama", layers=1)
    half = 2 * L
    with closing(tiny_llama(path, DynamicScaling())) as llama:
        read(llama, tokens[: 2 * half])
        memory = llama_cpp.llama_get_memory(llama._ctx.ctx)
        llama_cpp.llama_memory_seq_rm(memory, 0, 0, half)
        llama_cpp.llama_memory_seq_add(memory, 0, half, -1, -half)
        llama.n_tokens = half
        got = read(llama, tokens[2 * half : 2 * half + 1])
        factor = llama.dynamic_state.factor
    assert factor == pytest.approx(2 * 2**0.125)  # a step ahead of half + 1 tokens
    direct = static_logits(path, tokens[half : 2 * half + 1], RopeScaling("yarn", factor, L))[-1:]
    assert relative_error(got, direct) < 1e-4


@pytest.fixture(params=[True, False], ids=["one buffer", "a buffer each"])
def two_sequences(request, monkeypatch) -> None:
    """Contexts have room for two sequences, which the bindings do not offer."""
    default = llama_cpp.llama_context_default_params

    def with_two() -> llama_cpp.llama_context_params:
        params = default()
        params.n_seq_max, params.kv_unified = 2, request.param
        return params

    monkeypatch.setattr(sys.modules["llama_cpp.llama_cpp"], "llama_context_default_params", with_two)


@pytest.mark.usefixtures("two_sequences")
def test_one_factor_serves_all_sequences_of_a_context(checkpoint, tokens) -> None:
    """That of the longest; the short one's keys follow."""
    _, path = checkpoint("llama", layers=1)
    with closing(tiny_llama(path, DynamicScaling())) as llama:
        feed(llama, tokens[:100], sequence=1)
        feed(llama, tokens[: 3 * L], sequence=0)
        assert llama.dynamic_state.factor == pytest.approx(2 ** (13 / 8))  # a step ahead of 3
        got = feed(llama, tokens[100:101], sequence=1, first=100)
        factor = llama.dynamic_state.factor
    direct = static_logits(path, tokens[:101], RopeScaling("yarn", factor, L))[-1:]
    assert relative_error(got, direct) < 1e-4


def test_a_large_cache_that_goes_through_float32_is_rotated_part_by_part(checkpoint, tokens) -> None:
    """16384 cells at a time; here they are filled by copies of a sequence."""
    _, path = checkpoint("llama", layers=1)
    count = 16384 // L + 2
    bf16 = {"type_k": TYPES["bf16"], "type_v": TYPES["f32"]}
    with (
        closing(tiny_llama(path, DynamicScaling(), **bf16)) as llama,
        closing(llama.make_context((count + 1) * L, count, unified=True)) as context,
    ):
        feed(llama, tokens[:L], sequence=0, context=context)
        size = llama_cpp.llama_state_seq_get_size(context.ctx, 0)
        saved = (llama_cpp.ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data(context.ctx, saved, size, 0)
        for sequence in range(1, count):
            assert llama_cpp.llama_state_seq_set_data(context.ctx, saved, size, sequence) == size
        got = [
            feed(llama, [7], sequence=each, first=L, context=context) for each in (0, count // 2, count - 1)
        ]
    direct = static_logits(path, [*tokens[:L], 7], RopeScaling("yarn", 2**0.125, L))[-1:]
    assert max(relative_error(each, direct) for each in got) < 2e-2


def test_a_cut_beyond_the_windows_rotates_the_keys_of_the_other_layers(checkpoint, tokens) -> None:
    """The cache of the sliding windows then has no token left of the sequence, and no length."""
    _, path = checkpoint("gemma2")
    with closing(tiny_llama(path, DynamicScaling(), swa_full=False, n_ubatch=64)) as llama:
        read(llama, tokens[: 4 * L])
        rotations = llama.dynamic_state.rotations
        llama.n_tokens = 3 * L // 2
        read(llama, tokens[:1])
        assert llama.dynamic_state.factor < 2
        assert llama.dynamic_state.rotations == rotations + 1


def test_an_aborted_rotation_leaves_an_empty_cache_and_a_factor_that_holds(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    wants_abort = False
    abort = llama_cpp.ggml_abort_callback(lambda _: wants_abort)
    with closing(tiny_llama(path, DynamicScaling())) as llama:
        llama_cpp.llama_set_abort_callback(llama._ctx.ctx, abort, None)
        expected = read(llama, tokens[:L])
        wants_abort = True
        with pytest.raises(RuntimeError):
            llama.eval(tokens[L : 2 * L])
        assert llama.n_tokens == 0
        assert llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(llama._ctx.ctx), 0) == -1
        wants_abort = False
        assert np.array_equal(read(llama, tokens[:L]), expected)
        assert llama.dynamic_state.factor == 1


# ---- below the trained context nothing changes ------------------------------------------------


@pytest.mark.parametrize(
    ("cache", "policy"),
    [("f16", "growth"), ("q8_0", "growth"), ("f16", "request"), ("q8_0", "request"), ("f32", "exact")],
)
def test_a_text_that_fits_is_read_bit_for_bit_as_without_scaling(
    smollm2_q8, prose_tokens, cache: str, policy: str
) -> None:
    results = []
    for scaling in ("none", DynamicScaling(policy=policy)):
        types = {"type_k": TYPES[cache], "type_v": TYPES[cache], "flash_attn": True}
        with closing(Llama(smollm2_q8, n_ctx=16384, rope_scaling=scaling, verbose=False, **types)) as llama:
            results.append(read(llama, prose_tokens[:300]))
    assert np.array_equal(*results)


# ---- by request ------------------------------------------------------------------------------


def test_by_request_a_prompt_is_read_under_the_static_scaling_that_its_answer_will_need(
    checkpoint, tokens
) -> None:
    _, path = checkpoint("llama")
    prompt = tokens[: 2 * L]
    with closing(tiny_llama(path, DynamicScaling(policy="request"))) as llama:
        llama.reserve(3 * L)
        got = read(llama, prompt)
        assert (llama.dynamic_state.factor, llama.dynamic_state.rotations) == (3, 0)
        read(llama, tokens[2 * L : 3 * L + 1])  # the conversation outgrows it
        assert llama.dynamic_state.factor == (3 * L + 1) / L
        assert llama.dynamic_state.rotations == 1
    static = static_logits(path, prompt, RopeScaling("yarn", 3.0, L))
    assert relative_error(got, static) < 1e-4


@pytest.mark.parametrize(
    "options", [{"beta_fast": 8.0}, {"beta_slow": 3.0}, {"ramp": "rotations"}, {"truncate": False}], ids=str
)
def test_a_ramp_of_ones_own_reaches_the_library(checkpoint, tokens, options: dict) -> None:
    _, path = checkpoint("llama")
    with closing(tiny_llama(path, DynamicScaling(policy="request", **options))) as llama:
        llama.reserve(3 * L)
        got = read(llama, tokens[: 2 * L])
    static = static_logits(path, tokens[: 2 * L], RopeScaling("yarn", 3.0, L, **options))
    assert relative_error(got, static) < 1e-4
    assert relative_error(got, static_logits(path, tokens[: 2 * L], RopeScaling("yarn", 3.0, L))) > 1e-3


def test_growth_takes_no_step_beyond_the_whole_context(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    with closing(tiny_llama(path, DynamicScaling(step=2.0), n_ctx=3 * L)) as llama:
        read(llama, tokens[: 5 * L // 2])
        assert llama.dynamic_state.factor == 3


def test_a_factor_off_the_steps_stays_while_the_text_needs_no_more(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    with closing(tiny_llama(path, DynamicScaling())) as llama:
        llama.reserve(3 * L)
        read(llama, tokens[: 3 * L - 8])
        llama.reserve(0)
        read(llama, tokens[:8])
        assert (llama.dynamic_state.factor, llama.dynamic_state.rotations) == (3, 0)
        read(llama, tokens[:1])
        assert llama.dynamic_state.factor == pytest.approx(2 ** (13 / 8))


def test_a_single_cached_token_takes_the_temperature_of_a_new_factor(checkpoint, tokens) -> None:
    _, path = checkpoint("llama", layers=1)
    with closing(tiny_llama(path, DynamicScaling(policy="request"))) as llama:
        read(llama, tokens[:1])
        llama.reserve(16 * L)
        got = read(llama, tokens[1:3])
        assert llama.dynamic_state.rotations == 1
    static = static_logits(path, tokens[:3], RopeScaling("yarn", 16.0, L))
    assert relative_error(got, static[1:]) < 1e-4


def test_by_request_a_prompt_read_in_several_batches_is_under_one_factor(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    with closing(tiny_llama(path, DynamicScaling(policy="request"), n_batch=128)) as llama:
        llama.prefill(tokens[: 3 * L])
        assert (llama.dynamic_state.factor, llama.dynamic_state.rotations) == (3, 0)


def test_a_completion_by_request_reserves_prompt_and_answer(smollm2_q8, prose_tokens) -> None:
    dynamic = DynamicScaling(policy="request", original_max_position_embeddings=128)
    with closing(Llama(smollm2_q8, n_ctx=1024, rope_scaling=dynamic, verbose=False)) as llama:
        llama.create_completion(prose_tokens[:200], max_tokens=56, stop=[])
        assert llama.dynamic_state.factor == 2
        assert llama.dynamic_state.rotations == 0
        llama.create_completion(prose_tokens[200:230], max_tokens=10)
        assert llama.dynamic_state.factor == 1


def test_a_request_reserves_no_more_than_the_context_has(smollm2_q8, prose_tokens) -> None:
    dynamic = DynamicScaling(policy="request", original_max_position_embeddings=128)
    with closing(Llama(smollm2_q8, n_ctx=512, rope_scaling=dynamic, verbose=False)) as llama:
        next(llama.create_completion(prose_tokens[:200], max_tokens=2000, stream=True))
        assert llama.dynamic_state.factor == 4


def test_a_request_is_forgotten_with_its_answer_and_with_a_reset(smollm2_q8, prose_tokens) -> None:
    dynamic = DynamicScaling(policy="request", original_max_position_embeddings=128)
    with closing(Llama(smollm2_q8, n_ctx=1024, rope_scaling=dynamic, verbose=False)) as llama:
        llama.create_completion(prose_tokens[:128], max_tokens=128)
        assert llama.dynamic_state.factor == 2
        llama.reset()
        llama.eval(prose_tokens[:129])
        assert llama.dynamic_state.factor == pytest.approx(2**0.125)  # by growth
        next(llama.generate(prose_tokens[:200]))  # with no limit that is known
        assert llama.dynamic_state.factor == 200 / 128


def test_a_request_that_goes_on_from_the_last_one_reads_the_rest_under_its_own_factor(
    checkpoint, tokens
) -> None:
    _, path = checkpoint("llama", layers=1)
    dynamic = DynamicScaling(policy="request")
    with closing(tiny_llama(path, dynamic)) as llama:
        next(llama.generate(tokens[: 2 * L]))
        next(llama.generate(tokens[: 3 * L]))
        assert llama.n_tokens == 3 * L
        assert (llama.dynamic_state.factor, llama.dynamic_state.rotations) == (3, 1)
        next(llama.generate(tokens[3 * L : 4 * L], reset=False))
        assert (llama.n_tokens, llama.dynamic_state.factor) == (4 * L, 4)
        got = read(llama, tokens[:1])
        scaling = RopeScaling("yarn", llama.dynamic_state.factor, L)
    direct = static_logits(path, [*tokens[: 4 * L], tokens[0]], scaling)[-1:]
    assert relative_error(got, direct) < 1e-4


def test_requests_of_a_token_each_are_not_lost_in_rounding(checkpoint, tokens) -> None:
    """Rotated by 1/256 and less at a time, a float16 cache was wrong by 4%."""
    _, path = checkpoint("qwen3", layers=1)
    cache = {"type_k": TYPES["f16"], "type_v": TYPES["f16"], "flash_attn": True}
    with closing(tiny_llama(path, DynamicScaling(policy="request"), **cache)) as llama:
        read(llama, tokens[:L])
        for token in tokens[L : 4 * L]:
            got = read(llama, [token])
            assert llama.dynamic_state.factor >= llama.n_tokens / L
        factor = llama.dynamic_state.factor
        assert factor < 1.0101 * 4
    exact = static_logits(path, tokens[: 4 * L], RopeScaling("yarn", factor, L))[-1:]
    assert relative_error(got, exact) < 1e-2


# ---- saved states ----------------------------------------------------------------------------


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
def test_a_state_that_is_saved_right_after_a_context_shift_has_it(checkpoint, tokens, scaling) -> None:
    """A shift waits for the next batch; unpatched, a state had the new positions and the old keys."""
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
    dynamic = DynamicScaling(policy="request")
    with closing(tiny_llama(path, dynamic)) as llama:
        llama.reserve(3 * L)
        read(llama, tokens[: 2 * L])
        state = llama.save_state()
        expected = read(llama, tokens[:3])
        assert llama.dynamic_state.factor == 3
    with closing(tiny_llama(path, dynamic)) as other:
        other.load_state(state)
        assert np.array_equal(read(other, tokens[:3]), expected)


def test_after_a_state_was_refused_the_text_is_still_there(checkpoint, tokens) -> None:
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
        DynamicScaling("linear"),
        DynamicScaling("by-parts"),
        DynamicScaling(original_max_position_embeddings=L // 2),
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
        (DynamicScaling(ramp="rotations"), DynamicScaling()),
        (DynamicScaling(beta_fast=16.0), DynamicScaling()),
        (RopeScaling("yarn", 4.0, L, ramp="rotations"), RopeScaling("yarn", 4.0, L)),
        (RopeScaling("yarn", 4.0, L), RopeScaling("yarn", 4.0, L, ramp="rotations")),
    ],
    ids=["static", "ramp", "beta_fast", "no table", "a table"],
)
def test_a_state_of_other_frequencies_is_refused_though_factor_and_temperature_are_the_same(
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
from yarn_gguf.llama import Llama, llama_cpp

request = json.load(sys.stdin)
llama = Llama(request["model"], n_ctx=2048, n_batch=128, verbose=False,
              rope_scaling=DynamicScaling(original_max_position_embeddings=256))

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


def test_a_chat_that_was_shifted_saved_and_restored_elsewhere_goes_on_as_if_it_had_not_been(
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


# ---- in the file -----------------------------------------------------------------------------


def test_a_file_can_ask_for_dynamic_scaling(checkpoint, tokens, tmp_path: Path) -> None:
    _, plain = checkpoint("llama")
    path = tmp_path / "dynamic.gguf"
    ramp = {"beta_fast": 16.0, "beta_slow": 2.0}
    extend(plain, RopeScaling("yarn", 8.0, **ramp), dynamic="growth", output=path)
    assert read_model(path).dynamic == DynamicScaling(original_max_position_embeddings=L, **ramp)
    assert read_model(path).scaling == RopeScaling("yarn", 8.0, L, **ramp)
    with closing(tiny_llama(path)) as llama:
        read(llama, tokens[: 2 * L])
        assert llama.dynamic_state.factor == pytest.approx(2)
    extend(path, RopeScaling("yarn", 8.0))
    assert read_model(path).dynamic is None


@pytest.mark.parametrize("options", [{"ramp": "rotations"}, {"truncate": False}], ids=str)
def test_a_file_s_own_ramp_is_that_of_its_dynamic_scaling(tmp_path: Path, options: dict) -> None:
    path = write_tiny(tmp_path / "a.gguf")
    extend(path, RopeScaling("yarn", 4.0, **options), dynamic="request")
    assert read_model(path).dynamic == DynamicScaling("yarn", "request", 8192, **options)


@pytest.mark.parametrize("caller", [{"rope_scaling": "none"}, {"rope_scaling_type": 0}], ids=str)
def test_the_caller_s_scaling_goes_before_a_dynamic_file_s(checkpoint, tokens, tmp_path, caller) -> None:
    path = tmp_path / "dynamic.gguf"
    extend(checkpoint("llama")[1], RopeScaling("yarn", 8.0), dynamic="growth", output=path)
    with closing(Llama(path, n_ctx=4 * L, verbose=False, **F32, **caller)) as llama:
        got = read(llama, tokens[: 2 * L])
        assert llama.dynamic_state.factor == 1
    assert np.array_equal(got, static_logits(path, tokens[: 2 * L], RopeScaling(), n_ctx=4 * L))


def test_another_scaling_and_back_to_the_file_s_dynamic_one_on_the_same_weights(
    checkpoint, tokens, tmp_path
) -> None:
    path = tmp_path / "dynamic.gguf"
    extend(checkpoint("llama")[1], RopeScaling("yarn", 8.0), dynamic="growth", output=path)
    with closing(tiny_llama(path)) as llama:
        expected = read(llama, tokens[: 2 * L])
        llama.set_rope_scaling("none")
        assert not np.array_equal(read(llama, tokens[: 2 * L]), expected)
        llama.set_rope_scaling(None)
        assert np.array_equal(read(llama, tokens[: 2 * L]), expected)
        assert llama.dynamic_state.factor == pytest.approx(2)


def test_a_name_asks_for_dynamic_scaling_by_its_prefix_alone() -> None:
    assert dynamic_of("dynamic-by-parts") == DynamicScaling("by-parts")
    assert [dynamic_of(name) for name in ("by-parts", "yarn", "static-yarn", "none")] == [None] * 4


def test_a_fine_tuned_file_begins_at_its_own_factor(tmp_path: Path) -> None:
    keys = {
        "type": "yarn",
        "factor": 4.0,
        "original_context_length": 2048,
        "dynamic": "exact",
        "finetuned": True,
    }
    path = write_tiny(
        tmp_path / "a.gguf", **{f"rope__scaling__{name}": value for name, value in keys.items()}
    )
    assert read_model(path).dynamic == DynamicScaling(
        policy="exact", original_max_position_embeddings=2048, factor=4.0
    )


def test_another_scaling_forgets_the_fine_tuning_of_the_first(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "a.gguf")
    extend(path, RopeScaling("yarn", 16.0), dynamic="growth", finetuned=True)
    assert read_model(path).dynamic.factor == 16
    extend(path, RopeScaling("yarn", 4.0), dynamic="growth")
    assert read_model(path).dynamic.factor == 1


def test_growth_begins_at_the_smallest_factor(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    with closing(tiny_llama(path, DynamicScaling(factor=2.0))) as llama:
        got = read(llama, tokens[:L])
        assert llama.dynamic_state.factor == 2
    assert relative_error(got, static_logits(path, tokens[:L], RopeScaling("yarn", 2.0, L))) < 1e-4


# ---- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"method": "llama3"},
            "dynamic scaling method must be one of linear, ntk, by-parts, yarn, got 'llama3'",
        ),
        ({"policy": "always"}, "dynamic scaling policy must be one of growth, request, exact, got 'always'"),
        ({"step": 0.5}, "must be a number >= 1, got 0.5"),
        ({"factor": float("nan")}, "factor must be a number >= 1"),
        ({"beta_fast": 0.5}, "beta_fast must be a number > beta_slow"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(values: dict, message: str) -> None:
    with pytest.raises(RopeScalingError, match=message):
        DynamicScaling(**values)


@pytest.mark.parametrize("dynamic", [DynamicScaling(policy="exact"), DynamicScaling(step=1.005)])
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_rotations_that_rounding_would_undo_are_refused(checkpoint, cache: str, dynamic) -> None:
    """Token by token through 8192 rotations, a float16 cache lost them all: +440% of perplexity."""
    _, path = checkpoint("llama")
    with pytest.raises(RopeScalingError, match=r"rounding would undo .* a K cache of type f32"):
        tiny_llama(path, dynamic, type_k=TYPES[cache], flash_attn=True)


def test_exact_scaling_takes_a_float32_cache_by_itself(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    dynamic = DynamicScaling(policy="exact")
    with closing(Llama(path, n_ctx=8 * L, rope_scaling=dynamic, verbose=False)) as llama:
        read(llama, tokens[: 2 * L])
        assert llama.dynamic_state.factor == 2


@pytest.mark.parametrize("column", ["Llama 3, 8", "LongRoPE 4"])
def test_a_model_trained_with_llama3_or_longrope_scaling_is_refused(tmp_path: Path, column: str) -> None:
    row = ROWS["llama"]
    make_model(row, conformance.COLUMNS[column].scaling(row.dim)).save_pretrained(tmp_path)
    convert_weights(tmp_path, tmp_path / "model.gguf", type="f32")
    with pytest.raises(RopeScalingError, match=r"trained with (llama3|longrope) scaling, which dynamic"):
        tiny_llama(tmp_path / "model.gguf", DynamicScaling())


def test_a_model_with_a_table_of_its_own_is_refused(checkpoint, tmp_path: Path) -> None:
    table = tuple(inverse_frequencies(conformance.HEAD, THETA).tolist())
    extend(
        checkpoint("llama")[1],
        RopeScaling("explicit", 4.0, L, inv_freq=table),
        output=tmp_path / "explicit.gguf",
    )
    with pytest.raises(RopeScalingError, match="trained with explicit scaling, which dynamic"):
        tiny_llama(tmp_path / "explicit.gguf", DynamicScaling())


def test_a_cache_in_use_takes_no_dynamic_scaling(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    expected = static_logits(path, tokens[: L + 1], RopeScaling())[-1:]
    with closing(tiny_llama(path, "none")) as llama:
        read(llama, tokens[:L])
        with pytest.raises(RopeScalingError, match="rotated by other frequencies: clear it first"):
            native.set_dynamic_scaling(llama._ctx.ctx, DynamicScaling(original_max_position_embeddings=L))
        assert relative_error(read(llama, tokens[L : L + 1]), expected) < 1e-5


def test_a_model_without_rotary_embedding_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "gpt2.gguf", "gpt2")
    with pytest.raises(RopeScalingError, match="gpt2 models have no rotary embedding"):
        tiny_llama(path, "dynamic-yarn")


@pytest.mark.parametrize("own", [{"attention_factor": 1.5}, {"mscale": 1.0, "mscale_all_dim": 0.5}], ids=str)
def test_an_own_temperature_cannot_follow_the_factor(checkpoint, own: dict) -> None:
    _, path = checkpoint("llama")
    with pytest.raises(RopeScalingError, match="temperature of dynamic scaling follows the factor"):
        extend(path, RopeScaling("yarn", 4.0, **own), dynamic="growth", output=path.parent / "x")
