"""Dynamic scaling: the factor follows the text, and the cached keys follow the factor."""

from __future__ import annotations

from contextlib import closing

import conformance
import numpy as np
import pytest
import transformers
from conformance import ROWS, THETA
from dynamics import TYPES, L, feed, static_logits, tiny_llama
from libraries import relative_error
from pre_rope_cache import Oracle
from reading import read

from yarn_gguf import DynamicScaling, RopeScaling
from yarn_gguf.rope.scaling import EXTENDING_METHODS, inverse_frequencies
from yarn_gguf.run.llama import Llama, llama_cpp


@pytest.mark.parametrize("policy", ["growth", "exact"])
@pytest.mark.parametrize("method", EXTENDING_METHODS)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gemma3"])
def test_a_cache_kept_before_rope_gives_the_same_logits_at_every_step(
    checkpoint, tokens, name: str, method: str, policy: str
) -> None:
    model, path = checkpoint(name)
    row = ROWS[name]
    oracle = Oracle(model, windows_are_scaled=not row.nested)
    dynamic = DynamicScaling.of(method, policy=policy)
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
        # growth takes six steps, two of them at a single token
        assert len(set(factors)) == {"growth": 7, "exact": len(chunks)}[policy]
        if policy == "exact":
            assert factors[-1] == position / L


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_factor_changes_with_every_ubatch_that_needs_it(checkpoint, tokens, name: str) -> None:
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
    """The witness is transformers' own "dynamic" on a prompt in one piece."""
    _, path = checkpoint("llama")
    own = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": THETA}
    config = transformers.AutoConfig.for_model("llama", **(conformance._BASE | {"rope_parameters": own}))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.load_state_dict(checkpoint("llama")[0].state_dict())
    prompt = tokens[: 3 * L]
    expected = model(conformance.torch.tensor([prompt])).logits[0].detach().numpy()
    dynamic = DynamicScaling.of("ntk", policy="exact", ntk_factor=2.0)
    with closing(tiny_llama(path, dynamic, n_batch=4 * L, n_ubatch=4 * L)) as llama:
        assert relative_error(read(llama, prompt), expected) < 1e-4


# compressed attention has one type for K and V, and a quantized V needs flash attention
KINDS_OF_CACHE = [
    (name, type_, flash_attn)
    for name in ("qwen3", "phi3, 3/4 rotary", "deepseek-v2")
    for type_ in TYPES
    for flash_attn in (False, True)
    if flash_attn or name != "deepseek-v2" or type_ == "f32"
]


@pytest.mark.parametrize(("name", "type_", "flash_attn"), KINDS_OF_CACHE)
def test_growth_to_eight_times_the_context_is_about_as_exact_as_the_cache_type(
    checkpoint, tokens, name: str, type_: str, flash_attn: bool
) -> None:
    """13 rotations drift: by up to 3.4 times the error of writing quantized K once, as measured."""
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
    """Drop the first half and move the rest down: the next token sees the second half alone."""
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


@pytest.mark.usefixtures("two_sequences")
def test_one_factor_serves_all_sequences_of_a_context(checkpoint, tokens) -> None:
    """The factor is that of the longest sequence; the keys of the others are rotated too."""
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
    """A part has 16384 cells. Copies of one sequence fill them."""
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
    """After such a cut, the cache of the sliding windows has no token of the sequence left.

    A Llama would read the text again. The library goes on.
    """
    _, path = checkpoint("gemma2")
    with closing(tiny_llama(path, DynamicScaling(), swa_full=False, n_ubatch=64)) as llama:
        read(llama, tokens[: 4 * L])
        rotations = llama.dynamic_state.rotations
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(llama._ctx.ctx), 0, 3 * L // 2, -1)
        feed(llama, tokens[:1], sequence=0, first=3 * L // 2)
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


@pytest.mark.parametrize(
    ("cache", "policy"),
    [("f16", "growth"), ("q8_0", "growth"), ("f16", "request"), ("q8_0", "request"), ("f32", "exact")],
)
def test_a_text_that_fits_is_read_bit_for_bit_as_without_scaling(
    smollm2_q8, prose_tokens, cache: str, policy: str
) -> None:
    results = []
    for scaling in ("none", DynamicScaling.of(policy=policy)):
        types = {"type_k": TYPES[cache], "type_v": TYPES[cache], "flash_attn": True}
        with closing(Llama(smollm2_q8, n_ctx=16384, rope_scaling=scaling, verbose=False, **types)) as llama:
            results.append(read(llama, prose_tokens[:300]))
    assert np.array_equal(*results)
