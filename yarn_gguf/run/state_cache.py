"""A user's cache of states: an entry of another model, scaling or context is not found in it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from yarn_gguf.errors import SessionError
from yarn_gguf.run.handles import llama_cpp
from yarn_gguf.run.identity import identity_of

from llama_cpp.llama_cache import BaseLlamaCache  # isort: skip  (after handles)


class StateCache(BaseLlamaCache):
    """The states of one Llama in a cache that others may use too, such as a folder.

    Caches find an entry by the tokens with which it begins. Here each token has the context's number added.
    So entries of other contexts share no beginning with a prompt, and neither hide nor replace its own.

    states: the user's cache, of llama_cpp or like it.
    """

    def __init__(self, states: Any, llama: Any) -> None:
        super().__init__(states.capacity_bytes)
        self.states, self._llama = states, llama

    @property
    def cache_size(self) -> int:
        """Bytes of all states."""
        return self.states.cache_size

    def __getitem__(self, tokens: Sequence[int]) -> llama_cpp.LlamaState:
        return self.states[self._key(tokens)]

    def __contains__(self, tokens: Sequence[int]) -> bool:
        return self._key(tokens) in self.states

    def __setitem__(self, tokens: Sequence[int], state: llama_cpp.LlamaState) -> None:
        self.states[self._key(tokens)] = state

    def _key(self, tokens: Sequence[int]) -> tuple[int, ...]:
        number = _number_of(self._llama)
        return tuple(number + int(token) for token in tokens)


def _number_of(llama: Any) -> int:
    """Return a number for a Llama's context, which leaves the last 32 bits to a token."""
    shape = [llama.n_ctx(), llama.n_batch, llama._logits_all, llama.context_params.n_seq_max]
    try:
        identity = identity_of(llama)
    except (SessionError, OSError):  # the model's file is another by now: nobody else has these weights
        identity = {"process": os.getpid(), "Llama": id(llama)}
    digest = hashlib.sha256(json.dumps([identity, shape], sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "big") << 32
