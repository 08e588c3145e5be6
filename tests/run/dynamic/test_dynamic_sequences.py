"""Dynamic scaling of several sequences in a context. Random histories are compared with static scaling."""

from __future__ import annotations

import ctypes
import random
from contextlib import closing
from pathlib import Path

import conformance
import numpy as np
import pytest
from conformance import ROWS, make_model
from dynamics import make_room_for_sequences
from hf_checkpoints import convert_weights
from libraries import relative_error

from yarn_gguf import DynamicScaling, RopeScaling
from yarn_gguf.run.llama import Llama, llama_cpp

L = 64  # tokens of the original context
N = 3  # sequences
MOST = 10 * L  # tokens of a sequence


@pytest.fixture(params=[True, False], ids=["one buffer", "a buffer each"])
def several_sequences(request, monkeypatch) -> None:
    make_room_for_sequences(monkeypatch, N, unified=request.param)


@pytest.fixture(scope="module", params=["llama", "deepseek-v2"])
def model(request, tmp_path_factory) -> Path:
    """A model of one layer. Its keys depend on token, position and factor alone, not on the history."""
    folder = tmp_path_factory.mktemp("model")
    row = ROWS[request.param]
    row = conformance.Row(row.model_type, dim=row.dim, config=row.config | {"num_hidden_layers": 1})
    make_model(row, RopeScaling()).save_pretrained(folder)
    convert_weights(folder, folder / "model.gguf", type="f32", scaling=RopeScaling())
    return folder / "model.gguf"


def open_llama(model: Path, scaling) -> Llama:
    batches = {"n_batch": 256, "n_ubatch": 64}
    types = {"type_k": 0, "type_v": 0}
    return Llama(model, n_ctx=N * 16 * L, rope_scaling=scaling, verbose=False, **types, **batches)


class Walk:
    """A context under random changes, and the text that each sequence must hold.

    texts: the tokens of each sequence. shared: sequences with common cells, whose positions move together.
    factors: those that were seen.
    """

    def __init__(self, model: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.model = model
        self.llama = open_llama(model, DynamicScaling.of(original_max_position_embeddings=L))
        self.texts: list[list[int]] = [[] for _ in range(N)]
        self.shared: set[int] = set()
        self.factors: set[float] = set()

    @property
    def context(self) -> ctypes.c_void_p:
        return self.llama._ctx.ctx

    @property
    def memory(self) -> ctypes.c_void_p:
        return llama_cpp.llama_get_memory(self.context)

    def decode(self, items: list[tuple[int, int, int]]) -> np.ndarray:
        """Decode one batch of (sequence, position, token). Return logits: float32 (items, n_vocab)."""
        batch = llama_cpp.llama_batch_init(len(items), 0, 1)
        batch.n_tokens = len(items)
        for i, (sequence, position, token) in enumerate(items):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, True
            batch.seq_id[i][0] = sequence
        assert llama_cpp.llama_decode(self.context, batch) == 0
        llama_cpp.llama_batch_free(batch)
        logits = llama_cpp.llama_get_logits(self.context)
        return np.ctypeslib.as_array(logits, shape=(len(items), self.llama.n_vocab())).copy()

    def extend(self, counts: dict[int, int]) -> list[tuple[int, int, int]]:
        """Add counts[sequence] random tokens to each sequence. Return them as items for `decode`."""
        items = []
        for sequence, count in counts.items():
            for _ in range(count):
                token = self.random.randrange(3, 256)
                items.append((sequence, len(self.texts[sequence]), token))
                self.texts[sequence].append(token)
        return items

    def read(self, s: int) -> None:
        chosen = {s, self.random.randrange(N)}
        items = self.extend({each: self.random.choice([1, 7, 60, 200]) for each in chosen})
        if self.random.random() < 0.5:
            items.sort(key=lambda item: item[1])  # the sequences take turns within a batch
        for start in range(0, len(items), 256):
            self.decode(items[start : start + 256])

    def cut(self, s: int) -> None:
        """Drop the end of a sequence."""
        kept = self.random.randrange(1, len(self.texts[s]) + 1)
        llama_cpp.llama_memory_seq_rm(self.memory, s, kept, -1)
        del self.texts[s][kept:]

    def shift(self, s: int) -> None:
        """Drop a part of a sequence and move the rest down (a context shift)."""
        length = len(self.texts[s])
        if s in self.shared or length < 8:
            return
        first = self.random.randrange(length // 2)
        end = self.random.randrange(first + 1, length - 1)
        llama_cpp.llama_memory_seq_rm(self.memory, s, first, end)
        llama_cpp.llama_memory_seq_add(self.memory, s, end, -1, first - end)
        del self.texts[s][first:end]

    def copy(self, s: int) -> None:
        """Copy a sequence to the next one."""
        target = (s + 1) % N
        self.clear(target)
        llama_cpp.llama_memory_seq_cp(self.memory, s, target, -1, -1)
        self.texts[target] = list(self.texts[s])
        self.shared |= {s, target}

    def clear(self, s: int) -> None:
        llama_cpp.llama_memory_seq_rm(self.memory, s, -1, -1)
        self.texts[s] = []
        self.shared.discard(s)

    def restore_one(self, s: int) -> None:
        """Save the sequence and restore it as another, now and then in a new context."""
        size = llama_cpp.llama_state_seq_get_size(self.context, s)
        data = (ctypes.c_uint8 * size)()
        assert llama_cpp.llama_state_seq_get_data(self.context, data, size, s) == size
        text = list(self.texts[s])
        if self.random.random() < 0.3:
            self.reopen()
        target = self.random.randrange(N)
        assert llama_cpp.llama_state_seq_set_data(self.context, data, size, target) == size
        self.texts[target] = text
        self.shared.discard(target)

    def restore_all(self, _: int) -> None:
        """Save the whole state and restore it in a new context."""
        size = llama_cpp.llama_state_get_size(self.context)
        data = (ctypes.c_uint8 * size)()
        size = llama_cpp.llama_state_get_data(self.context, data, size)
        texts, shared = self.texts, self.shared
        self.reopen()
        assert llama_cpp.llama_state_set_data(self.context, data, size) == size
        self.texts, self.shared = texts, shared

    def reopen(self) -> None:
        self.llama.close()
        self.llama = open_llama(self.model, DynamicScaling.of(original_max_position_embeddings=L))
        self.texts, self.shared = [[] for _ in range(N)], set()

    def check(self) -> None:
        """Check the next token of each sequence against static scaling with the present factor."""
        logits = self.decode(self.extend(dict.fromkeys(range(N), 1)))
        factor = self.llama.dynamic_state.factor
        assert factor >= max(map(len, self.texts)) / L
        self.factors.add(factor)
        for got, text in zip(logits, self.texts, strict=True):
            with closing(open_llama(self.model, RopeScaling("yarn", factor, L))) as static:
                *_, last = static.read_logits(text)
                assert relative_error(got, last[-1]) < 1e-4


@pytest.mark.usefixtures("several_sequences")
@pytest.mark.parametrize("seed", range(3))
def test_after_any_history_all_keys_have_the_present_factor(model: Path, seed: int) -> None:
    walk = Walk(model, seed)
    steps = [walk.cut, walk.shift, walk.copy, walk.clear, walk.restore_one, walk.restore_all]
    try:
        for _ in range(24):
            s = walk.random.randrange(N)
            wants_more = walk.random.random() < 0.5 or not walk.texts[s]
            if wants_more and len(walk.texts[s]) < MOST:
                walk.read(s)
            elif walk.texts[s]:
                walk.random.choice(steps)(s)
            if walk.random.random() < 0.6:
                walk.check()
        walk.check()
    finally:
        walk.llama.close()
    assert len(walk.factors) > 2
