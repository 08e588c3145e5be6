"""Shared by the tests of grammars: a small Llama that answers at random, and what a grammar takes."""

from __future__ import annotations

import ctypes
import json
import math
from typing import Any

from yarn_gguf.native.library import load
from yarn_gguf.run.llama import Llama

ASK = [{"role": "user", "content": "Tell me."}]
ANY_TOKEN = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}  # that the grammar allows


def as_response_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def answer(llama: Llama, schema: Any, seed: int) -> Any:
    """Return a random answer to a schema: Python's value of its JSON."""
    [quote] = llama.vocabulary.tokenize(b'"', add_bos=False, special=False)
    made = llama.create_chat_completion(
        ASK,
        response_format=as_response_format(schema),
        seed=seed,
        max_tokens=1000,
        logit_bias={quote: 15.0},  # else a string goes on and on
        **ANY_TOKEN,
    )
    choice = made["choices"][0]
    assert choice["finish_reason"] == "stop", choice
    return json.loads(choice["message"]["content"])


def takes(llama: Llama, grammar: str, text: str) -> bool:
    """Return whether the library's grammar takes `text`, token by token, and may end after it."""
    llama_cpp, vocabulary = load(), llama.vocabulary.vocab
    sampler = llama_cpp.llama_sampler_init_grammar(vocabulary, grammar.encode(), b"root")
    assert sampler
    tokens = [*llama.vocabulary.tokenize(text.encode(), add_bos=False, special=False), llama.token_eos()]
    try:
        for token in tokens:
            if not _is_allowed(llama_cpp, sampler, token):
                return False
            if token != tokens[-1]:
                llama_cpp.llama_sampler_accept(sampler, token)
        return True
    finally:
        llama_cpp.llama_sampler_free(sampler)


def _is_allowed(llama_cpp: Any, sampler: int, token: int) -> bool:
    data = (llama_cpp.llama_token_data * 1)(llama_cpp.llama_token_data(token, 0.0, 0.0))
    candidates = llama_cpp.llama_token_data_array(data, 1, -1, False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(candidates))
    return not math.isinf(data[0].logit)
