"""Operations on the cache leave the keys that a direct computation gives, or are refused.

The witnesses: transformers, which computes all keys at the new positions; and, for each architecture of
llama.cpp, a fresh context that reads the tokens at the new positions (cache_ops.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import cache_ops
import numpy as np
import pytest
import random_gguf
import torch
import transformers
from cache_ops import Line
from conformance import CONTEXT, ROWS, make_model
from hf_checkpoints import convert_weights
from libraries import ROOT, relative_error
from reading import read

from yarn_gguf import RopeScaling, YarnGGUFError
from yarn_gguf.native.log import captured_errors
from yarn_gguf.run.handles import Further
from yarn_gguf.run.llama import Llama, llama_cpp

YARN = RopeScaling("yarn", 4.0, CONTEXT)
TABLE = RopeScaling("llama3", 8.0, CONTEXT, low_freq_factor=1.0, high_freq_factor=4.0)
TOKENS = np.random.default_rng(1).integers(3, 256, 2 * CONTEXT).tolist()
F32 = {"type_k": 0, "type_v": 0}  # enum ggml_type

# ---- transformers ----------------------------------------------------------------------------


def shift(memory: object) -> np.ndarray:
    llama_cpp.llama_memory_seq_add(memory, 0, 0, -1, 100)
    return np.arange(len(TOKENS) - 1) + 100


def divide(memory: object) -> np.ndarray:
    """Groups of three tokens have one position."""
    llama_cpp.llama_memory_seq_div(memory, 0, 0, -1, 3)
    return np.arange(len(TOKENS) - 1) // 3


def divide_a_part(memory: object) -> np.ndarray:
    """Self-extend: the first 120 tokens are divided, and the others move close to them."""
    llama_cpp.llama_memory_seq_add(memory, 0, 120, -1, 1000)
    llama_cpp.llama_memory_seq_div(memory, 0, 0, 120, 2)
    llama_cpp.llama_memory_seq_add(memory, 0, 1120, -1, -1060)
    return np.concatenate([np.arange(120) // 2, np.arange(120, len(TOKENS) - 1) - 60])


MODELS = [
    (name, scaling)
    for name in ("llama", "qwen3", "phi3, 3/4 rotary", "deepseek-v2")
    for scaling in (RopeScaling(), YARN, TABLE)
    if not ROWS[name].is_by_hand(scaling)
]


@pytest.mark.parametrize(("name", "scaling"), MODELS)
@pytest.mark.parametrize("operation", [shift, divide, divide_a_part])
def test_keys_at_new_positions_are_those_of_transformers(
    tmp_path: Path, operation: Callable, name: str, scaling: RopeScaling
) -> None:
    """With one layer, keys do not depend on what was seen before the positions changed."""
    row = replace(ROWS[name], config=ROWS[name].config | {"num_hidden_layers": 1})
    model = make_model(row, scaling)
    model.save_pretrained(tmp_path)
    convert_weights(tmp_path, tmp_path / "model.gguf", type="f32")
    with closing(Llama(tmp_path / "model.gguf", n_ctx=4 * CONTEXT, verbose=False, **F32)) as llama:
        read(llama, TOKENS[:-1])
        positions = operation(llama_cpp.llama_get_memory(llama.ctx))
        got = logits_of_next(llama, TOKENS[-1])
    assert relative_error(got, by_transformers(model, [*positions, positions[-1] + 1])) < 1e-4


def logits_of_next(llama: Llama, token: int) -> np.ndarray:
    """Read a token at the position after the last one: float32 (n_vocab,)."""
    batch = llama_cpp.llama_batch_get_one((llama_cpp.llama_token * 1)(token), 1)
    assert llama_cpp.llama_decode(llama.ctx, batch) == 0
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits(llama.ctx), shape=(llama.n_vocab(),)).copy()


def by_transformers(model: transformers.PreTrainedModel, positions: list[int]) -> np.ndarray:
    """Return the last token's logits, with each token at its position: float32 (n_vocab,)."""
    mask = torch.ones(1, len(TOKENS))  # without it, equal positions count as the start of another text
    with torch.no_grad():
        done = model(torch.tensor([TOKENS]), attention_mask=mask, position_ids=torch.tensor([positions]))
    return done.logits[0, -1].float().numpy()


# ---- a fresh context, for each architecture --------------------------------------------------

# windows, layers without a rope, compressed keys, indexers, a graph without scaling, several ropes, states
RIGHT = ["llama", "gemma3", "cohere2", "deepseek2", "deepseek32", "cogvlm", "step35", "lfm2", "mamba", "t5"]
# weighted keys, learned positions, several components, groups of positions
REFUSED = ["hunyuan-dense", "gpt2", "qwen2vl", "glm5-next", "deepseek4"]


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return cache_ops.examine([*RIGHT, *REFUSED])


@pytest.fixture(scope="module")
def all_lines() -> list[Line]:
    return cache_ops.examine()


def test_operations_are_right_under_every_scaling(lines: list[Line]) -> None:
    right = {line.name for line in lines if "right" in line.verdicts}
    assert right == set(RIGHT)
    assert not [line.title for line in lines if not line.verdicts <= {"right", "refused", "none"}]


def test_positions_that_cannot_change_are_refused_with_a_reason(lines: list[Line]) -> None:
    refused = {line.name for line in lines for each in line.outcomes.values() if each.verdict == "refused"}
    assert refused == set(REFUSED)
    assert all(each.reason for line in lines for each in line.outcomes.values() if each.verdict == "refused")


@pytest.mark.slow
def test_operations_are_right_or_refused_on_every_architecture(all_lines: list[Line]) -> None:
    tried = [line for line in all_lines if line.outcomes]
    assert len(tried) >= 130
    assert not [line.title for line in tried if not line.verdicts <= {"right", "refused", "none"}]
    assert not [line.title for line in all_lines if "aborted" in line.reason or "failed" in line.reason]


@pytest.mark.slow
def test_the_published_page_has_the_same_verdicts(all_lines: list[Line]) -> None:
    """`make cache-operations` makes docs/cache-operations.md."""
    published = (ROOT / "docs" / "cache-operations.md").read_text()
    assert facts(published) == facts(cache_ops.page(all_lines))


def facts(page: str) -> str:
    """Return the page without measurements."""
    return re.sub(r"\b(\d+e-\d+|0)\b", "N", page)


# ---- refusals in Python ----------------------------------------------------------------------


@contextmanager
def two_sequences(path: Path, *, unified: bool, n_ctx: int = 256, **kwargs) -> Iterator[Further]:
    """Yield a context for two sequences; the first has eight tokens."""
    with closing(Llama(path, n_ctx=n_ctx, verbose=False, **kwargs)) as llama:
        context = llama.make_context(n_ctx, 2, unified=unified)
        tokens = (llama_cpp.llama_token * 8)(*TOKENS[:8])
        assert llama_cpp.llama_decode(context.ctx, llama_cpp.llama_batch_get_one(tokens, 8)) == 0
        yield context


def last_positions(context: Further) -> list[int]:
    return [llama_cpp.llama_memory_seq_pos_max(context.memory, sequence) for sequence in (0, 1)]


def test_a_window_that_lost_tokens_cannot_move(tmp_path: Path) -> None:
    path = random_gguf.gemma2(tmp_path / "model.gguf")
    with two_sequences(path, unified=True, n_ctx=2048, swa_full=False) as context:
        with pytest.raises(YarnGGUFError, match=r"^positions cannot change: .*set swa_full"):
            context.kv_cache_seq_shift(0, 0, -1, 8)
        assert last_positions(context) == [7, -1]


def test_a_copy_moves_alone_or_not_at_all(tmp_path: Path) -> None:
    path = random_gguf.llama(tmp_path / "model.gguf")
    with two_sequences(path, unified=True) as context:
        context.kv_cache_seq_cp(0, 1, -1, -1)
        with pytest.raises(YarnGGUFError, match=r"sequence 1 shares cells .*kv_unified = false"):
            context.kv_cache_seq_shift(1, 0, -1, 8)
        assert last_positions(context) == [7, 7]
    with two_sequences(path, unified=False) as context:
        context.kv_cache_seq_cp(0, 1, -1, -1)
        context.kv_cache_seq_shift(1, 0, -1, 8)
        assert last_positions(context) == [7, 15]


def test_a_recurrent_state_is_copied_or_removed_as_a_whole(tmp_path: Path) -> None:
    path = random_gguf.lfm2(tmp_path / "model.gguf")
    with two_sequences(path, unified=True) as context:
        with pytest.raises(YarnGGUFError, match="state, that after position 7 alone: copy the whole"):
            context.kv_cache_seq_cp(0, 1, 0, 4)
        assert not llama_cpp.llama_memory_seq_rm(context.memory, 0, 2, 4)
        assert last_positions(context) == [7, -1]
        context.kv_cache_seq_cp(0, 1, 0, 8)
        assert last_positions(context) == [7, 7]


def test_positions_cannot_be_divided_by_zero(tmp_path: Path) -> None:
    with two_sequences(random_gguf.llama(tmp_path / "model.gguf"), unified=True) as context:
        with captured_errors() as errors:
            llama_cpp.llama_memory_seq_div(context.memory, 0, 0, -1, 0)
        assert errors == ["llama_memory_seq_div: the divisor must be at least 1, got 0"]
        assert last_positions(context) == [7, -1]
