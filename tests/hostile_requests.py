"""What callers get wrong, one thing after the other in one process: each is to be an exception, or to work.

    python tests/hostile_requests.py FOLDER [CASE ...] [--upstream]

FOLDER: of the models that tests/test_llama_hostile.py makes. Prints "NAME: exception" or "NAME: works".
--upstream: the same with llama_cpp.Llama, a process for each.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from yarn_gguf.llama import Llama, llama_cpp

FOLDER = Path(sys.argv[1])
CLASS: Any = Llama
Processors, Grammar = llama_cpp.LogitsProcessorList, llama_cpp.LlamaGrammar
Q8_0 = llama_cpp.GGML_TYPE_Q8_0


def made(model: str = "text", **arguments: Any) -> Any:
    settings = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    return CLASS(str(FOLDER / f"{model}.gguf"), **(settings | arguments))


def asked(
    prompt: Any = "Once upon a time", model: str = "text", make: dict | None = None, **arguments: Any
) -> Any:
    return made(model, **(make or {})).create_completion(prompt, **({"max_tokens": 4} | arguments))


def read(model: str = "tokens", tokens: Any = (5, 6, 7), **arguments: Any) -> Any:
    llama = made(model, **arguments)
    llama.eval(list(tokens))
    return llama.sample()


def embedded(texts: Any = "some text", model: str = "encoder", **arguments: Any) -> Any:
    return made(model, **({"embedding": True} | arguments)).embed(texts)


def fail(*_: Any) -> Any:
    raise ZeroDivisionError


def only_newlines(tokens: np.ndarray, scores: np.ndarray) -> np.ndarray:
    barred = np.full_like(scores, -np.inf)
    barred[198] = 0.0
    return barred


def grammar(text: str) -> dict:
    return {"grammar": Grammar.from_string(text, verbose=False)}


def processed(function: Callable) -> dict:
    return {"logits_processor": Processors([function])}


def sampled_after(prepare: Callable[[Any], object], **arguments: Any) -> Any:
    llama = made("tokens", **arguments)
    prepare(llama)
    return llama.sample()


CASES: dict[str, Callable[[], Any]] = {
    # constructor
    "n_batch 0": lambda: read(n_batch=0),
    "n_batch -1": lambda: read(n_batch=-1),
    "n_ubatch 0": lambda: read(n_ubatch=0),
    "n_ubatch -5": lambda: read(n_ubatch=-5),
    "n_ubatch above n_batch": lambda: read(n_batch=8, n_ubatch=512, tokens=range(3, 100)),
    "n_batch a float": lambda: read(n_batch=8.5),
    "n_ctx -1": lambda: read(n_ctx=-1),
    "n_ctx huge": lambda: read(n_ctx=2**31 - 1),
    "n_ctx beyond int32": lambda: read(n_ctx=2**32 + 5),
    "n_ctx 0": lambda: read(n_ctx=0),
    "n_ctx 1": lambda: read(n_ctx=1),
    "n_threads -1": lambda: read(n_threads=-1, n_threads_batch=-1),
    "n_threads huge": lambda: read(n_threads=100000, n_threads_batch=100000),
    "pooling_type 99": lambda: embedded(pooling_type=99),
    "pooling_type -7": lambda: embedded(pooling_type=-7),
    **{f"pooling_type {n} of an encoder": lambda n=n: embedded(pooling_type=n) for n in range(5)},
    **{f"pooling_type {n}": lambda n=n: embedded(model="text", pooling_type=n) for n in range(5)},
    "attention_type 99": lambda: read(attention_type=99),
    "attention not causal": lambda: read(attention_type=1, tokens=range(3, 100), n_batch=64, n_ubatch=8),
    "embedding by attention not causal": lambda: embedded(
        "word " * 400, "text", attention_type=1, n_ctx=512, n_batch=512, n_ubatch=256
    ),
    "rope_scaling_type 99": lambda: read(rope_scaling_type=99),
    "split_mode 99": lambda: read(split_mode=99),
    "split_mode tensor": lambda: read(split_mode=3),
    "main_gpu 99": lambda: read(main_gpu=99, split_mode=0, n_gpu_layers=-1),
    "numa 99": lambda: read(numa=99),
    "tensor_split": lambda: read(tensor_split=[float("nan"), -1.0]),
    "V quantized without flash attention": lambda: read(flash_attn=False, type_v=Q8_0),
    "V quantized with flash attention": lambda: read(flash_attn=True, type_v=Q8_0, type_k=Q8_0),
    "type_k 999": lambda: read(type_k=999),
    "type_k a string": lambda: read(type_k="q8_0"),
    "kv_overrides of a type": lambda: read(kv_overrides={"llama.block_count": "two"}),
    "kv_overrides of no layer": lambda: read(kv_overrides={"llama.block_count": 0}),
    "kv_overrides of many layers": lambda: read(kv_overrides={"llama.block_count": 100000}),
    "kv_overrides of no head": lambda: read(kv_overrides={"llama.attention.head_count": 0}),
    "kv_overrides of a negative head": lambda: read(kv_overrides={"llama.attention.head_count": -4}),
    "kv_overrides of odd heads": lambda: read(kv_overrides={"llama.attention.head_count_kv": 3}),
    "kv_overrides of bos": lambda: asked("", make={"kv_overrides": {"tokenizer.ggml.bos_token_id": 10**6}}),
    "kv_overrides of eos": lambda: asked(make={"kv_overrides": {"tokenizer.ggml.eos_token_id": 10**6}}),
    "kv_overrides of a list": lambda: read(kv_overrides={"llama.block_count": [1]}),
    "kv_overrides with a long key": lambda: read(kv_overrides={"k" * 200: 1}),
    "kv_overrides of the base": lambda: read(kv_overrides={"llama.rope.freq_base": 0.0}),
    "lora_path missing": lambda: read(lora_path="none.gguf"),
    "lora_path no adapter": lambda: read(lora_path=str(FOLDER / "text.gguf")),
    "vocab_only": lambda: read("text", vocab_only=True),
    "vocab_only, embedding": lambda: embedded(model="text", vocab_only=True),
    "last_n_tokens_size -2": lambda: asked(make={"last_n_tokens_size": -2}),
    "last_n_tokens_size huge": lambda: asked(make={"last_n_tokens_size": 2**30}),
    "swa_full of a model without windows": lambda: read(swa_full=False),
    "logits_all and a batch": lambda: read(logits_all=True, tokens=range(3, 200), n_batch=16),
    "rope_freq_base NaN": lambda: read(rope_freq_base=float("nan")),
    "yarn_orig_ctx -1": lambda: read(yarn_orig_ctx=-1, rope_scaling_type=2),
    # tokens and prompts
    "tokens out of range": lambda: read(tokens=[5, 10**6]),
    "tokens negative": lambda: read(tokens=[-1]),
    "tokens beyond int32": lambda: read(tokens=[2**40]),
    "tokens of floats": lambda: read(tokens=[1.5]),
    "prompt of tokens out of range": lambda: asked([5, 10**7]),
    "prompt empty": lambda: asked(""),
    "prompt of no tokens": lambda: asked([]),
    "prompt of None": lambda: asked(None),
    "prompt too long": lambda: asked("word " * 1000),
    "generate nothing": lambda: next(made("tokens").generate([])),
    "eval nothing": lambda: made("tokens").eval([]),
    "beyond the context": lambda: list(islice(made("tokens").generate(range(3, 50)), 1000)),
    "detokenize out of range": lambda: made().detokenize([10**6]),
    "detokenize negative": lambda: made().detokenize([-5]),
    "tokenize without a vocabulary": lambda: made("tokens").tokenize(b"text"),
    "text for a model without a vocabulary": lambda: asked(model="tokens"),
    "tokenize broken UTF-8": lambda: made().tokenize(b"\xff\xfe\x00abc"),
    "detokenize without a vocabulary": lambda: made("tokens").detokenize([5]),
    # sampling
    "sample before eval": lambda: made("tokens").sample(),
    "sample after reset": lambda: sampled_after(lambda llama: (llama.eval([5]), llama.reset())),
    "sample after load_state": lambda: sampled_after(
        lambda llama: (llama.eval([5]), llama.load_state(llama.save_state()))
    ),
    "sample where nothing was computed": lambda: sampled_after(lambda llama: setattr(llama, "n_tokens", 3)),
    "sample far away": lambda: (llama := made("tokens"), llama.eval([5, 6]), llama.sample(idx=900)),
    "sample before the last": lambda: (llama := made("tokens"), llama.eval([5, 6]), llama.sample(idx=0)),
    "grammar that is none": lambda: asked(**grammar("this is no grammar ::=")),
    "grammar empty": lambda: asked(**grammar("")),
    "grammar without root": lambda: asked(**grammar('rule ::= "a"')),
    "grammar of an undefined rule": lambda: asked(**grammar("root ::= missing")),
    "grammar left recursive": lambda: asked(**grammar('root ::= root "a" | "b"')),
    "grammar of too many": lambda: asked(**grammar('root ::= "a"{1,100000000}')),
    "grammar ends": lambda: asked(**grammar('root ::= "yes"'), max_tokens=40),
    "grammar against a processor": lambda: asked(**grammar("root ::= [a-z]+"), **processed(only_newlines)),
    "grammar against a processor, greedy": lambda: asked(
        **grammar("root ::= [a-z]+"), **processed(only_newlines), temperature=0.0
    ),
    "processor that raises": lambda: asked(**processed(fail)),
    "processor of another shape": lambda: asked(**processed(lambda tokens, scores: np.zeros(3))),
    "processor of NaN": lambda: asked(**processed(lambda tokens, scores: scores * np.nan)),
    "processor that forbids all": lambda: asked(**processed(lambda tokens, scores: scores - np.inf)),
    "processor of None": lambda: asked(**processed(lambda tokens, scores: None)),
    "stopping criteria that raise": lambda: asked(stopping_criteria=llama_cpp.StoppingCriteriaList([fail])),
    "logit_bias out of range": lambda: asked(logit_bias={10**7: 1.0}),
    "logit_bias infinite": lambda: asked(logit_bias={5: float("inf")}),
    "temperature NaN": lambda: asked(temperature=float("nan")),
    "temperature -1": lambda: asked(temperature=-1.0),
    "temperature infinite": lambda: asked(temperature=float("inf")),
    "top_k -5": lambda: asked(top_k=-5),
    "top_p -1": lambda: asked(top_p=-1.0),
    "top_p NaN": lambda: asked(top_p=float("nan")),
    "min_p 2": lambda: asked(min_p=2.0),
    "typical_p 0": lambda: asked(typical_p=0.0),
    "repeat_penalty 0": lambda: asked(repeat_penalty=0.0),
    "repeat_penalty NaN": lambda: asked(repeat_penalty=float("nan")),
    "mirostat 1": lambda: asked(mirostat_mode=1, mirostat_tau=float("nan")),
    "mirostat 2": lambda: asked(mirostat_mode=2, mirostat_tau=-1.0),
    "max_tokens -1": lambda: asked(max_tokens=-1, make={"n_ctx": 256}),
    "seed -1": lambda: asked(seed=-1),
    "seed huge": lambda: asked(seed=2**70),
    "logprobs without logits_all": lambda: asked(logprobs=5),
    "logprobs huge": lambda: asked(logprobs=10**6, make={"logits_all": True}),
    "logprobs": lambda: asked(logprobs=3, make={"logits_all": True}),
    # embeddings
    "embedding then generation": lambda: asked(make={"embedding": True}),
    "generation of an encoder": lambda: asked(model="encoder"),
    "generation of an encoder for embeddings": lambda: asked(model="encoder", make={"embedding": True}),
    "embed without embedding": lambda: embedded(embedding=False),
    "embed nothing": lambda: embedded([]),
    "embed an empty text": lambda: embedded(""),
    "embed an empty text by a decoder": lambda: embedded("", "text"),
    "embed much": lambda: embedded("word " * 3000, n_batch=512, n_ctx=512),
    "embed a long text in small parts": lambda: embedded("word " * 200, n_ctx=512, n_batch=512, n_ubatch=16),
    "embed with a larger batch": lambda: embedded("word " * 700, n_ctx=1024, n_batch=1024),
    "embed many": lambda: embedded(["some text"] * 600),
    "embed many by a decoder": lambda: embedded(["some text"] * 600, "text"),
    "rerank without a head": lambda: embedded(pooling_type=4),
    # states, drafts, formats
    "load_state of bytes": lambda: _load_broken(),
    "load_state of another model": lambda: made("tokens").load_state(made().save_state()),
    "draft of nonsense": lambda: _drafted(np.array([10**6, -3])),
    "draft of floats": lambda: _drafted(np.array([1.5])),
    "draft longer than the context": lambda: _drafted(np.full(5000, 5)),
    "draft and a long prompt": lambda: _drafted(np.array([5]), prompt=range(3, 150), n_batch=16),
    "chat_format unknown": lambda: _chat({"chat_format": "none-such"}),
    "chat of no messages": lambda: _chat({}, messages=[]),
    "chat of a bad schema": lambda: _chat(
        {}, response_format={"type": "json_object", "schema": {"type": "magic"}}
    ),
    "chat in JSON": lambda: _chat({}, response_format={"type": "json_object"}),
    "context shift by hand": lambda: _shifted(),
}


def _load_broken() -> None:
    llama = made("tokens")
    llama.eval([5, 6, 7])
    state = llama.save_state()
    state.llama_state = bytes(range(256)) * (len(state.llama_state) // 256 + 1)
    state.llama_state_size = len(state.llama_state)
    llama.load_state(state)


def _drafted(tokens: np.ndarray, prompt: Any = (5, 6, 7), **arguments: Any) -> list[int]:
    def draft(input_ids: np.ndarray, /, **_: Any) -> np.ndarray:
        return tokens

    return list(islice(made("tokens", draft_model=draft, **arguments).generate(list(prompt)), 30))


def _chat(make: dict, messages: Any = None, **arguments: Any) -> Any:
    messages = [{"role": "user", "content": "hi"}] if messages is None else messages
    return made(**make).create_chat_completion(messages, max_tokens=4, **arguments)


def _shifted() -> None:
    llama = made("tokens")
    llama.eval(range(3, 60))
    llama._ctx.kv_cache_seq_rm(0, 10, 20)
    llama._ctx.kv_cache_seq_shift(0, 20, -1, -10)
    llama.n_tokens -= 10
    llama.eval([5])


def outcome(case: str) -> str:
    try:
        CASES[case]()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:150]}"
    return "works"


if __name__ == "__main__":
    names = [each for each in sys.argv[2:] if not each.startswith("--")]
    if "--upstream" in sys.argv and not names:
        for name in CASES:
            line = [sys.executable, __file__, str(FOLDER), name, "--upstream"]
            done = subprocess.run(line, capture_output=True, text=True)
            print(
                done.stdout.strip() if done.returncode == 0 else f"{name}: ENDS THE PROCESS {done.returncode}"
            )
        sys.exit()
    if "--upstream" in sys.argv:
        CLASS = llama_cpp.Llama
    for name in names or CASES:
        print(f"{name}: ", end="", flush=True)
        print(outcome(name).replace("\n", " "), flush=True)
