"""Dynamic scaling: the factor of a request, and the steps of growth."""

from __future__ import annotations

from contextlib import closing

import pytest
from dynamics import TYPES, L, static_logits, tiny_llama
from libraries import relative_error
from reading import read

from yarn_gguf import DynamicScaling, RopeScaling
from yarn_gguf.run.llama import Llama


def test_by_request_a_prompt_is_read_under_the_factor_that_prompt_and_answer_need(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    prompt = tokens[: 2 * L]
    with closing(tiny_llama(path, DynamicScaling.of(policy="request"))) as llama:
        llama.reserve(3 * L)
        got = read(llama, prompt)
        assert (llama.dynamic_state.factor, llama.dynamic_state.rotations) == (3, 0)
        read(llama, tokens[2 * L : 3 * L + 1])  # the text outgrows the reservation
        assert llama.dynamic_state.factor == (3 * L + 1) / L
        assert llama.dynamic_state.rotations == 1
    static = static_logits(path, prompt, RopeScaling("yarn", 3.0, L))
    assert relative_error(got, static) < 1e-4


@pytest.mark.parametrize(
    "options", [{"beta_fast": 8.0}, {"beta_slow": 3.0}, {"ramp": "rotations"}, {"truncate": False}], ids=str
)
def test_another_ramp_reaches_the_library(checkpoint, tokens, options: dict) -> None:
    _, path = checkpoint("llama")
    with closing(tiny_llama(path, DynamicScaling.of(policy="request", **options))) as llama:
        llama.reserve(3 * L)
        got = read(llama, tokens[: 2 * L])
    static = static_logits(path, tokens[: 2 * L], RopeScaling("yarn", 3.0, L, **options))
    assert relative_error(got, static) < 1e-4
    assert relative_error(got, static_logits(path, tokens[: 2 * L], RopeScaling("yarn", 3.0, L))) > 1e-3


def test_growth_takes_no_step_beyond_the_whole_context(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    with closing(tiny_llama(path, DynamicScaling.of(step=2.0), n_ctx=3 * L)) as llama:
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
    with closing(tiny_llama(path, DynamicScaling.of(policy="request"))) as llama:
        read(llama, tokens[:1])
        llama.reserve(16 * L)
        got = read(llama, tokens[1:3])
        assert llama.dynamic_state.rotations == 1
    static = static_logits(path, tokens[:3], RopeScaling("yarn", 16.0, L))
    assert relative_error(got, static[1:]) < 1e-4


def test_by_request_a_prompt_read_in_several_batches_is_under_one_factor(checkpoint, tokens) -> None:
    _, path = checkpoint("llama")
    with closing(tiny_llama(path, DynamicScaling.of(policy="request"), n_batch=128)) as llama:
        llama.prefill(tokens[: 3 * L])
        assert (llama.dynamic_state.factor, llama.dynamic_state.rotations) == (3, 0)


def test_a_completion_by_request_reserves_prompt_and_answer(smollm2_q8, prose_tokens) -> None:
    dynamic = DynamicScaling.of(policy="request", original_max_position_embeddings=128)
    with closing(Llama(smollm2_q8, n_ctx=1024, rope_scaling=dynamic, verbose=False)) as llama:
        llama.create_completion(prose_tokens[:200], max_tokens=56, stop=[])
        assert llama.dynamic_state.factor == 2
        assert llama.dynamic_state.rotations == 0
        llama.create_completion(prose_tokens[200:230], max_tokens=10)
        assert llama.dynamic_state.factor == 1


def test_a_request_reserves_no_more_than_the_context_has(smollm2_q8, prose_tokens) -> None:
    dynamic = DynamicScaling.of(policy="request", original_max_position_embeddings=128)
    with closing(Llama(smollm2_q8, n_ctx=512, rope_scaling=dynamic, verbose=False)) as llama:
        next(llama.create_completion(prose_tokens[:200], max_tokens=2000, stream=True))
        assert llama.dynamic_state.factor == 4


def test_a_reservation_ends_with_its_answer_and_with_a_reset(smollm2_q8, prose_tokens) -> None:
    dynamic = DynamicScaling.of(policy="request", original_max_position_embeddings=128)
    with closing(Llama(smollm2_q8, n_ctx=1024, rope_scaling=dynamic, verbose=False)) as llama:
        llama.create_completion(prose_tokens[:128], max_tokens=128)
        assert llama.dynamic_state.factor == 2
        llama.reset()
        llama.eval(prose_tokens[:129])
        assert llama.dynamic_state.factor == pytest.approx(2**0.125)  # by growth
        next(llama.generate(prose_tokens[:200]))  # the length of the answer is not known
        assert llama.dynamic_state.factor == 200 / 128


def test_a_request_that_goes_on_from_the_last_one_reads_the_rest_under_its_own_factor(
    checkpoint, tokens
) -> None:
    _, path = checkpoint("llama", layers=1)
    dynamic = DynamicScaling.of(policy="request")
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
    """A float16 cache that was rotated by 1/256 and less at a time was wrong by 4%."""
    _, path = checkpoint("qwen3", layers=1)
    cache = {"type_k": TYPES["f16"], "type_v": TYPES["f16"], "flash_attn": True}
    with closing(tiny_llama(path, DynamicScaling.of(policy="request"), **cache)) as llama:
        read(llama, tokens[:L])
        for token in tokens[L : 4 * L]:
            got = read(llama, [token])
            assert llama.dynamic_state.factor >= llama.n_tokens / L
        factor = llama.dynamic_state.factor
        assert factor < 1.0101 * 4
    exact = static_logits(path, tokens[: 4 * L], RopeScaling("yarn", factor, L))[-1:]
    assert relative_error(got, exact) < 1e-2
