"""Methods that ggml's rope op lacks, given as explicit frequencies: SmolLM2's logits against torch."""

import pickle

import numpy as np
import pytest
import random_gguf
import torch
from libraries import logits as library_logits
from libraries import patched, relative_error
from reading import read

from yarn_gguf import ModelLoadError, RopeScaling, RopeScalingError, extend
from yarn_gguf.gguf.edit import change_keys
from yarn_gguf.gguf.header import ValueType, key_value, read_header
from yarn_gguf.native.scaling import set_rope_frequencies
from yarn_gguf.run.llama import Llama, llama_cpp

L = 512  # the original context that we pretend, so that scaling takes effect within few tokens
F32_CACHE = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
FACTORS = tuple(1 + i / 8 for i in range(32))

SCALINGS = {
    "rotations": RopeScaling("yarn", 4.0, L, ramp="rotations"),
    "untruncated": RopeScaling("yarn", 4.0, L, truncate=False),
    "rotations, own temperature": RopeScaling("yarn", 4.0, L, ramp="rotations", attention_factor=1.375),
    "by-parts by rotations": RopeScaling("by-parts", 4.0, L, ramp="rotations"),
    "llama3": RopeScaling("llama3", 4.0, L, low_freq_factor=1.0, high_freq_factor=4.0),
    "longrope": RopeScaling("longrope", 4.0, L, short_factor=FACTORS[::-1], long_factor=FACTORS),
}


def logits(model, tokens, **kwargs) -> np.ndarray:
    llama = Llama(model, n_ctx=1024, verbose=False, **F32_CACHE, **kwargs)
    try:
        return read(llama, tokens)
    finally:
        llama.close()


@pytest.fixture(scope="module")
def tokens(prose_tokens) -> list[int]:
    return prose_tokens[:900]


@pytest.fixture(scope="module")
def torch_with_frequencies(smollm2_torch):
    """Return a function (tokens, inv_freq, attention_factor) -> logits that puts the table into the model."""

    def run(tokens, inv_freq, attention_factor) -> np.ndarray:
        return smollm2_torch(tokens, inv_freq=torch.tensor(inv_freq), attention_scaling=attention_factor)

    return run


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_every_method_gives_torchs_logits(smollm2_f32, torch_with_frequencies, tokens, scaling):
    table = scaling.frequencies(64, 100000.0)
    expected = torch_with_frequencies(tokens, table.inv_freq, table.attention_factor)
    assert relative_error(logits(smollm2_f32, tokens, rope_scaling=scaling), expected) < 1e-4


@pytest.mark.parametrize("name", ["rotations, own temperature", "llama3"])
def test_a_backend_that_reads_freq_factors_alone_scales_the_same(
    smollm2_f32, torch_with_frequencies, tokens, tmp_path, name
):
    """Upstream's code on the CPU stands for Metal's and Vulkan's: it does not know our steps either."""
    table = SCALINGS[name].frequencies(64, 100000.0)
    expected = torch_with_frequencies(tokens, table.inv_freq, table.attention_factor)
    extend(smollm2_f32, SCALINGS[name], output=tmp_path / "table.gguf")
    context = {"n_ctx": 1024, "flash_attn_type": 0, **F32_CACHE}
    got = library_logits(patched(), tmp_path / "table.gguf", tokens, upstream_rope=True, **context)
    assert relative_error(got, expected) < 1e-4


@pytest.mark.parametrize("name", ["rotations, own temperature", "untruncated", "llama3", "explicit"])
def test_a_file_with_a_table_gives_the_logits_of_the_same_scaling_from_the_caller(
    smollm2_f32, tmp_path, tokens, name
):
    table = SCALINGS["longrope"].frequencies(64, 100000.0)
    explicit = RopeScaling("explicit", 4.0, L, attention_factor=1.25, inv_freq=tuple(table.inv_freq.tolist()))
    scaling = SCALINGS.get(name, explicit)
    path = extend(smollm2_f32, scaling, output=tmp_path / "extended.gguf").path
    from_file, from_caller = logits(path, tokens), logits(smollm2_f32, tokens, rope_scaling=scaling)
    assert relative_error(from_file, from_caller) < 1e-5  # the temperature is rounded on the way
    assert np.array_equal(logits(path, tokens[:50], rope_scaling="none"), logits(smollm2_f32, tokens[:50]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((1.0,) * 31, "has 31 numbers, expected 32"),
        ((1.0,) * 31 + (float("nan"),), "holds nan"),
        ((1.0,) * 31 + (0.0,), "holds 0"),
        (b"bytes", "array of float64"),
    ],
    ids=["length", "nan", "zero", "type"],
)
def test_a_bad_table_in_the_file_fails_the_load_by_name(smollm2_q8, tmp_path, value, message):
    key = "llama.rope.scaling.inv_freq"
    path = tmp_path / "bad.gguf"
    change_keys(read_header(smollm2_q8), [key_value(key, ValueType.ARRAY, value)], [key], path)
    with pytest.raises(ModelLoadError, match=rf"bad rope key: {key}.*{message}"):
        Llama(path, verbose=False)


@pytest.mark.parametrize("flash_attn", [False, True])
def test_a_table_of_yarns_frequencies_equals_yarn(smollm2_f32, tokens, flash_attn):
    """The op's own arithmetic is the witness."""
    scaling = RopeScaling("yarn", 4.0, L)
    expected = logits(smollm2_f32, tokens, rope_scaling=scaling, flash_attn=flash_attn)
    llama = Llama(smollm2_f32, n_ctx=1024, verbose=False, flash_attn=flash_attn, **F32_CACHE)
    table = scaling.frequencies(64, 100000.0)
    set_rope_frequencies(llama._ctx.ctx, table.inv_freq, scaling.factor, table.attention_factor)
    got = read(llama, tokens)
    llama.close()
    assert relative_error(got, expected) < (1e-3 if flash_attn else 1e-4)  # flash attention rounds to f16


def test_a_table_may_be_replaced_while_the_cache_is_empty(smollm2_q8, tokens):
    first, second = SCALINGS["rotations"], SCALINGS["llama3"]
    expected = logits(smollm2_q8, tokens[:100], rope_scaling=second)
    llama = Llama(smollm2_q8, n_ctx=1024, verbose=False, rope_scaling=first, **F32_CACHE)
    before = read(llama, tokens[:100])
    table = second.frequencies(64, 100000.0)
    with pytest.raises(RopeScalingError, match="clear it first"):
        set_rope_frequencies(llama._ctx.ctx, table.inv_freq, second.factor, table.attention_factor)
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llama._ctx.ctx), True)
    llama.reset()
    set_rope_frequencies(llama._ctx.ctx, table.inv_freq, second.factor, table.attention_factor)
    after = read(llama, tokens[:100])
    llama.close()
    assert np.array_equal(after, expected)
    assert not np.array_equal(before, after)


def test_a_table_is_refused_where_only_the_layers_without_a_window_have_keys(tmp_path):
    """A cut back to where the window's cache has no tokens any more leaves the other cache in use."""
    path = random_gguf.gemma2(tmp_path / "gemma2.gguf")
    llama = Llama(path, n_ctx=1024, n_batch=32, n_ubatch=32, swa_full=False, verbose=False)
    list(llama.read_logits([i % 256 for i in range(900)]))
    memory = llama_cpp.llama_get_memory(llama._ctx.ctx)
    llama_cpp.llama_memory_seq_rm(memory, 0, 10, -1)
    assert llama_cpp.llama_memory_seq_pos_max(memory, 0) == -1  # the window's cache
    with pytest.raises(RopeScalingError, match="clear it first"):
        set_rope_frequencies(llama._ctx.ctx, np.ones(random_gguf.HEAD // 2), 2.0, 1.0)
    llama_cpp.llama_memory_clear(memory, True)
    set_rope_frequencies(llama._ctx.ctx, np.ones(random_gguf.HEAD // 2), 2.0, 1.0)
    llama.close()


def test_a_table_of_the_wrong_length_is_refused(smollm2_q8):
    llama = Llama(smollm2_q8, verbose=False)
    with pytest.raises(RopeScalingError, match="31 frequencies given, the model has 32 pairs"):
        set_rope_frequencies(llama._ctx.ctx, np.ones(31), 2.0, 1.0)
    llama.close()


def test_a_context_shift_rotates_by_the_table(smollm2_f32, tokens):
    """Tokens read from position 300 on and shifted down by 300 equal tokens read from 0 on."""
    scaling, offset = SCALINGS["rotations, own temperature"], 300
    expected = logits(smollm2_f32, tokens[:200], rope_scaling=scaling)[-1]
    llama = Llama(smollm2_f32, n_ctx=1024, verbose=False, rope_scaling=scaling, **F32_CACHE)
    llama.n_tokens = offset
    list(llama.read_logits(tokens[:199]))
    llama_cpp.llama_memory_seq_add(llama_cpp.llama_get_memory(llama._ctx.ctx), 0, 0, -1, -offset)
    llama.n_tokens = 199
    (shifted,) = (part[-1].copy() for part in llama.read_logits(tokens[199:200]))
    llama.close()
    assert relative_error(shifted, expected) < 1e-3


def test_a_pickled_llama_scales_as_before(smollm2_q8, tokens):
    scaling = SCALINGS["untruncated"]
    llama = Llama(smollm2_q8, n_ctx=1024, verbose=False, rope_scaling=scaling)
    again = pickle.loads(pickle.dumps(llama))
    assert again.rope_scaling == scaling
    one, other = (next(iter(each.read_logits(tokens[:50]))).copy() for each in (llama, again))
    assert np.array_equal(one, other)
    llama.close()
    again.close()
