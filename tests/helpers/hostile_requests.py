"""Bad input of callers, one case after the other in one process. Each must raise an exception, or work.

    python tests/helpers/hostile_requests.py FOLDER [--upstream] [CASE ...]

FOLDER has the models that tests/run/test_llama_hostile.py makes. Prints "NAME: exception" or "NAME: works".
--upstream runs each case with llama_cpp.Llama on an unpatched library, in another process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from libraries import UNPATCHED

if is_upstream := "--upstream" in sys.argv:
    os.environ["LLAMA_CPP_LIB_PATH"] = str(UNPATCHED)
    import llama_cpp
    from llama_cpp import Llama
else:
    from yarn_gguf.run.llama import Llama, llama_cpp

folder: Path
Processors = llama_cpp.LogitsProcessorList
Case = tuple[str, Callable[[], Any]]  # the beginning of our outcome, and the request


def opened(model: str = "text", **arguments: Any) -> Any:
    settings = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    return Llama(str(folder / f"{model}.gguf"), **(settings | arguments))


def complete(prompt: Any = "Once upon a time", model: str = "text", make: Any = (), **arguments: Any) -> Any:
    return opened(model, **dict(make)).create_completion(prompt, **({"max_tokens": 4} | arguments))


def sample(model: str = "tokens", tokens: Any = (5, 6, 7), **arguments: Any) -> Any:
    """Sample after reading `tokens`."""
    llama = opened(model, **arguments)
    llama.eval(list(tokens))
    return llama.sample()


def embed(texts: Any = "some text", model: str = "encoder", **arguments: Any) -> Any:
    return opened(model, **({"embedding": True} | arguments)).embed(texts)


def sample_at(idx: int | None = None, *, tokens: Any = (), believed: int | None = None) -> Any:
    """Sample at `idx`, after reading `tokens`. believed: a number of tokens that is set without reading."""
    llama = opened("tokens")
    if tokens:
        llama.eval(tokens)
    if believed is not None:
        llama.n_tokens = believed
    return llama.sample(idx=idx)


def complete_under(grammar: str, **arguments: Any) -> Any:
    return complete(grammar=llama_cpp.LlamaGrammar.from_string(grammar, verbose=False), **arguments)


def complete_under_chain(length: int) -> Any:
    """Complete under a grammar of `length` rules, each of which refers to the next one."""
    rules = ["root", *(f"r{number}" for number in range(length))]
    lines = [f"{rule} ::= {following}" for rule, following in pairwise(rules)]
    return complete_under("\n".join([*lines, f"{rules[-1]} ::= [a-z]+"]))


def complete_with(function: Callable) -> Any:
    return complete(logits_processor=Processors([function]))


def fail(*_: Any) -> Any:
    raise ZeroDivisionError


def only_newlines(tokens: np.ndarray, scores: np.ndarray) -> np.ndarray:
    barred = np.full_like(scores, -np.inf)
    barred[198] = 0.0
    return barred


def complete_against_processor(**arguments: Any) -> Any:
    return complete_under("root ::= [a-z]+", logits_processor=Processors([only_newlines]), **arguments)


def generate_with_drafts(prompt: Any, **arguments: Any) -> list[int]:
    llama = opened("tokens", draft_model=lambda input_ids, **_: np.array([5]), **arguments)
    return list(islice(llama.generate(list(prompt)), 30))


def load_state_of_bytes() -> None:
    llama = opened("tokens")
    llama.eval([5, 6, 7])
    state = llama.save_state()
    state.llama_state = bytes(range(256)) * (len(state.llama_state) // 256 + 1)
    state.llama_state_size = len(state.llama_state)
    llama.load_state(state)


NOT_CAUSAL = {"attention_type": 1, "n_ctx": 512, "n_batch": 512, "n_ubatch": 256}
EPSILON = "llama.attention.layer_norm_rms_epsilon"
BAD_EPSILON = f"ModelLoadError: {{folder}}/tokens.gguf: bad value: {EPSILON} = "
NO_LAYERS, MANY_LAYERS = {"llama.block_count": 0}, {"llama.block_count": 100000}
LONG_TEXT = '{"type": "string", "maxLength": 65535}'
RECURSIVE = {"kv_overrides": {"tokenizer.ggml.pre": "deepseek-v3"}}
FORBIDDEN = "YarnGGUFError: no token can be sampled: every token is forbidden"
NOTHING = "YarnGGUFError: there is nothing to go on from"
NO_VOCABULARY = "YarnGGUFError: {folder}/tokens.gguf has no vocabulary"

# with llama_cpp.Llama these end the process
DEADLY: dict[str, Case] = {
    "n_batch -1": ("ModelLoadError: n_batch must be", lambda: sample(n_batch=-1)),
    "n_threads huge": ("ModelLoadError: n_threads must be", lambda: sample(tokens=[5], n_threads=100000)),
    "n_threads_batch huge": (
        "ModelLoadError: n_threads_batch must be",
        lambda: sample(n_threads_batch=100000),
    ),
    "pooling_type 99": ("ModelLoadError: pooling_type must be", lambda: embed(pooling_type=99)),
    "pooling_type -7": ("ModelLoadError: pooling_type must be", lambda: embed(pooling_type=-7)),
    "type_k 999": ("ModelLoadError: type_k must be", lambda: sample(type_k=999)),
    "no layers": (
        "ModelLoadError: kv_overrides cannot change llama.",
        lambda: sample(kv_overrides=NO_LAYERS),
    ),
    "many layers": ("ModelLoadError: kv_overrides cannot change", lambda: sample(kv_overrides=MANY_LAYERS)),
    "experts of a model without": (
        "ModelLoadError: {folder}/tokens.gguf: bad count: llama.expert_used_count = 0, expected 1 to 4",
        lambda: sample(kv_overrides={"llama.expert_count": 4}),
    ),
    "groups of no experts": (
        "ModelLoadError: {folder}/tokens.gguf: bad count: llama.expert_group_count = 3",
        lambda: sample(kv_overrides={"llama.expert_group_count": 3}),
    ),
    "more layers for prediction than there are": (
        "ModelLoadError: {folder}/tokens.gguf: bad count: llama.nextn_predict_layers = 5, expected 0 to 2",
        lambda: sample(kv_overrides={"llama.nextn_predict_layers": 5}),
    ),
    "epsilon negative": (
        BAD_EPSILON + "-1, expected a number >= 0",
        lambda: sample(kv_overrides={EPSILON: -1.0}),
    ),
    "epsilon NaN": (
        BAD_EPSILON + "nan, expected a number >= 0",
        lambda: sample(kv_overrides={EPSILON: float("nan")}),
    ),
    "windows of no layer": (
        "ModelLoadError: {folder}/windows.gguf: failed to initialize the context: bad value: no layer has a",
        lambda: sample("windows", kv_overrides={"gemma2.attention.sliding_window_pattern": 1}),
    ),
    "rotary dimensions in windows": (
        "ModelLoadError: {folder}/windows.gguf: bad rope key: gemma2.rope.dimension_count_swa = 3, expected",
        lambda: sample("windows", kv_overrides={"gemma2.rope.dimension_count_swa": 3}),
    ),
    "pooling of the file": (
        "ModelLoadError: {folder}/encoder.gguf: bad value: bert.pooling_type = 7, expected -1 to 4",
        lambda: embed(kv_overrides={"bert.pooling_type": 7}),
    ),
    "lora_path missing": ("FileNotFoundError", lambda: sample(lora_path="none.gguf")),
    "lora_path no adapter": (
        "ModelLoadError: {folder}/text.gguf is no LoRA adapter",
        lambda: sample(lora_path=str(folder / "text.gguf")),
    ),
    "lora_path of another model": (
        "ModelLoadError: {folder}/tokens.gguf: failed to apply lora adapter: model arch",
        lambda: sample(lora_path=str(folder / "adapter.gguf")),
    ),
    "vocab_only, embedding": (
        "YarnGGUFError: {folder}/text.gguf was loaded with vocab_only",
        lambda: embed(model="text", vocab_only=True),
    ),
    "attention not causal": (
        "YarnGGUFError: 400 tokens, whose attention is not causal",
        lambda: sample(tokens=[5] * 400, **NOT_CAUSAL),
    ),
    "embedding by attention not causal": (
        "YarnGGUFError: 401 tokens, whose attention is not causal",
        lambda: embed("word " * 400, "text", **NOT_CAUSAL),
    ),
    "embed in small parts": (
        "ModelLoadError: n_ubatch, with embedding=True, must be",
        lambda: embed("word " * 200, n_ctx=512, n_batch=512, n_ubatch=16),
    ),
    "embed with a larger batch": ("works", lambda: embed("word " * 700, n_ctx=1024, n_batch=1024)),
    "embed an empty text": ("YarnGGUFError: a text to embed has no tokens", lambda: embed("", "text")),
    "detokenize out of range": ("YarnGGUFError: tokens are whole", lambda: opened().detokenize([10**6])),
    "detokenize negative": ("YarnGGUFError: tokens are whole", lambda: opened().detokenize([-5])),
    "tokenize without a vocabulary": (NO_VOCABULARY, lambda: opened("tokens").tokenize(b"text")),
    "detokenize without a vocabulary": (NO_VOCABULARY, lambda: opened("tokens").detokenize([5])),
    "sample where nothing was computed": (
        "YarnGGUFError: no token can be sampled: invalid logits id -1",
        lambda: sample_at(believed=3),
    ),
    "sample far away": (
        "YarnGGUFError: no token can be sampled: invalid logits id 898, reason: out of range",
        lambda: sample_at(900, tokens=[5, 6]),
    ),
    "tokenize with a vocabulary of another kind": (
        "YarnGGUFError: the model's vocabulary has no tokens for this text: ",
        lambda: complete(make={"kv_overrides": {"tokenizer.ggml.model": "llama"}}.items()),
    ),
    "tokenize with no kind of vocabulary": (
        "YarnGGUFError: {folder}/text.gguf has no vocabulary",
        lambda: complete(make={"kv_overrides": {"tokenizer.ggml.model": "none"}}.items()),
    ),
    "tokenize 100,000 spaces": ("works", lambda: opened(**RECURSIVE).tokenize(b" " * 100000)),
    "tokenize 100,000 letters": ("works", lambda: opened(**RECURSIVE).tokenize(b"a" * 100000)),
    "grammar that is none": (
        "YarnGGUFError: the grammar cannot be used",
        lambda: complete_under("no grammar ::="),
    ),
    "grammar without root": (
        "YarnGGUFError: the grammar cannot be used: \"grammar does not contain a 'root' symbol\"",
        lambda: complete_under('rule ::= "a"'),
    ),
    "grammar left recursive": (
        "YarnGGUFError: the grammar cannot be used: 'unsupported grammar, left recursion",
        lambda: complete_under('root ::= root "a" | "b"'),
    ),
    "grammar too deep": (
        "YarnGGUFError: the grammar cannot be used: more than 1,000 brackets within one another",
        lambda: complete_under(f"root ::= {'(' * 50000}[(]{')' * 50000}"),
    ),
    "schema with a large maxLength": (
        "YarnGGUFError: the JSON schema cannot be obeyed: #/maxLength: at most 2,000 can be",
        lambda: complete(grammar=llama_cpp.LlamaGrammar.from_json_schema(LONG_TEXT, verbose=False)),
    ),
    "grammar of a long chain": (
        "YarnGGUFError: the grammar cannot be used: more than 10,000 rules",
        lambda: complete_under_chain(100_000),
    ),
    "grammar against a processor": (FORBIDDEN, complete_against_processor),
    "grammar against a processor, greedy": (FORBIDDEN, lambda: complete_against_processor(temperature=0.0)),
}

# it accepts these silently, and does something else
WRONG: dict[str, Case] = {
    "n_ctx beyond int32": ("ModelLoadError: n_ctx must be", lambda: sample(n_ctx=2**32 + 5)),
    "n_ubatch -5": ("ModelLoadError: n_ubatch must be", lambda: sample(n_ubatch=-5)),
    "rope_scaling_type 99": ("ModelLoadError: rope_scaling_type", lambda: sample(rope_scaling_type=99)),
    "attention_type 99": ("ModelLoadError: attention_type must be", lambda: sample(attention_type=99)),
    "split_mode 99": ("ModelLoadError: split_mode must be", lambda: sample(split_mode=99)),
    "numa 99": ("ModelLoadError: numa must be", lambda: sample(numa=99)),
    "last_n_tokens_size -2": ("ModelLoadError: last_n_tokens_size", lambda: sample(last_n_tokens_size=-2)),
    "yarn_orig_ctx -1": ("ModelLoadError: yarn_orig_ctx must be", lambda: sample(yarn_orig_ctx=-1)),
    "processor that raises": ("ZeroDivisionError", lambda: complete_with(fail)),
    "processor of another shape": ("ValueError", lambda: complete_with(lambda tokens, scores: np.zeros(3))),
    "processor of NaN": (FORBIDDEN, lambda: complete_with(lambda tokens, scores: scores * np.nan)),
    "processor that forbids all": (FORBIDDEN, lambda: complete_with(lambda tokens, scores: scores - np.inf)),
    "processor of None": (FORBIDDEN, lambda: complete_with(lambda tokens, scores: None)),
    "logit_bias out of range": ("IndexError: index 10000000", lambda: complete(logit_bias={10**7: 1.0})),
    "temperature NaN": (FORBIDDEN, lambda: complete(temperature=float("nan"))),
}

# it refuses these without a reason
BARE: dict[str, Case] = {
    "n_batch 0": ("ModelLoadError: n_batch must be", lambda: sample(n_batch=0)),
    "n_ctx -1": ("ModelLoadError: n_ctx must be", lambda: sample(n_ctx=-1)),
    "V quantized without flash attention": (
        "ModelLoadError: {folder}/tokens.gguf: quantized V cache requires flash_attn",
        lambda: sample(flash_attn=False, type_v=llama_cpp.GGML_TYPE_Q8_0),
    ),
    "a negative head": (
        "ModelLoadError: kv_overrides: llama.attention.head_count = -4 is no UINT32",
        lambda: sample(kv_overrides={"llama.attention.head_count": -4}),
    ),
    "vocab_only": (
        "YarnGGUFError: {folder}/text.gguf: there is no cache",
        lambda: sample("text", vocab_only=True),
    ),
    "prompt empty": (NOTHING, lambda: complete("")),
    "prompt of no tokens": (NOTHING, lambda: complete([])),
    "generate nothing": (NOTHING, lambda: next(opened("tokens").generate([]))),
    "sample before eval": (NOTHING, sample_at),
    "beyond the context": (
        "NoRoomError: 1 tokens do not fit: 256 of 256 are used",
        lambda: list(opened("tokens").generate(range(3, 50))),
    ),
    "generation of an encoder": (
        "YarnGGUFError: {folder}/encoder.gguf: there is no cache",
        lambda: complete(model="encoder"),
    ),
    "load_state of bytes": ("RopeScalingError: error loading state", load_state_of_bytes),
    "draft and a long prompt": ("works", lambda: generate_with_drafts(range(3, 150), n_batch=16)),
}

CASES = DEADLY | WRONG | BARE


def outcome(case: str) -> str:
    """Return "works", or the exception of a case."""
    try:
        CASES[case][1]()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:150]}"
    return "works"


def outcome_upstream(case: str) -> str:
    """Return the outcome of a case in another process, which it may end."""
    line = [sys.executable, __file__, folder, "--upstream", case]
    done = subprocess.run(line, capture_output=True, text=True)
    ended = f"ENDS THE PROCESS: {done.returncode}"
    return done.stdout.partition(": ")[2].strip() if done.returncode == 0 else ended


if __name__ == "__main__":
    folder, *names = (each for each in sys.argv[1:] if each != "--upstream")
    folder = Path(folder)
    outcome_of = outcome_upstream if is_upstream and not names else outcome
    for name in names or CASES:
        print(f"{name}: ", end="", flush=True)
        print(outcome_of(name).replace("\n", " "), flush=True)
