"""Compare the patched with the unpatched library where nothing is scaled: logits, and greedy text.

    python benchmarks/unscaled_logits.py MODEL.gguf [--tokens 1024] [--text examples/mansfield-park.txt]

Both read the same text with MODEL.gguf, and again with its weights in float32. Both are compared with
transformers, which computes in float32 from the weights of MODEL.gguf. "upstream's rope" is the patched
library with YARN_GGUF_UPSTREAM_ROPE=1. A row has the mean KL divergence in nats, the relative L2 error of the
logits, and the share of positions with the same likeliest token. Greedy texts follow passages of the text.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from paired import ROOT
from rich.console import Console
from rich.table import Table

GREEDY = """
import json, sys
import llama_cpp
model, length, *prompts = json.loads(sys.stdin.read())
llama = llama_cpp.Llama(model, n_ctx=1024, verbose=False, n_threads=2)
for prompt in prompts:
    llama.reset()
    found = []
    for token in llama.generate(prompt, temp=0.0, top_k=1):
        found.append(token)
        if len(found) == length:
            break
    print(json.dumps(found))
"""
PROMPTS, PROMPT, ANSWER = 8, 32, 64  # passages; tokens of each; tokens that follow
HELPERS = ROOT / "tests" / "helpers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file with its vocabulary, without a rope scaling")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--text", type=Path, default=ROOT / "examples" / "mansfield-park.txt")
    args = parser.parse_args()
    sys.path.append(str(HELPERS))
    from libraries import UNPATCHED, logits, patched

    from yarn_gguf.run.prompt import text_tokens

    tokens = text_tokens(args.model, args.text.read_text(encoding="utf-8"))[: args.tokens]
    with tempfile.TemporaryDirectory() as scratch:
        exact = by_transformers(args.model, tokens)
        plain = in_float32(args.model, Path(scratch, "float32.gguf"))
        table = Table("weights", "library", "against", "KL", "logit error", "same top token", box=None)
        for name, model in ((args.model.name, args.model), ("the same in float32", plain)):
            ours, theirs = (logits(library, model, tokens) for library in (patched(), UNPATCHED))
            as_upstream = logits(patched(), model, tokens, upstream_rope=True)
            for library, against, got, expected in (
                ("unpatched", "float32", theirs, exact),
                ("patched", "float32", ours, exact),
                ("patched", "unpatched", ours, theirs),
                ("upstream's rope", "unpatched", as_upstream, theirs),
            ):
                table.add_row(name, library, against, *differences(got, expected))
    Console(highlight=False, width=120).print(table)
    passages = [tokens[i * PROMPT : (i + 1) * PROMPT] for i in range(PROMPTS)]
    ours, theirs = (greedy(library, args.model, passages) for library in (patched(), UNPATCHED))
    same = [
        sum(np.cumprod([a == b for a, b in zip(*pair, strict=True)]))
        for pair in zip(ours, theirs, strict=True)
    ]
    print(f"greedy text, tokens of {ANSWER} before the two libraries part: {', '.join(map(str, same))}")


def by_transformers(model: Path, tokens: Sequence[int]) -> np.ndarray:
    """Return the logits that transformers computes in float32 from the weights of a GGUF file."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        model.parent,
        gguf_file=model.name,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    with torch.no_grad():
        return loaded(torch.tensor([list(tokens)]), use_cache=False).logits[0].numpy()


def in_float32(model: Path, output: Path) -> Path:
    """Write the weights of a GGUF file in float32."""
    from yarn_gguf.native.library import load

    llama_cpp = load()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = gguf.LlamaFileType.ALL_F32, True
    if llama_cpp.llama_model_quantize(str(model).encode(), str(output).encode(), ctypes.byref(params)):
        raise SystemExit(f"{model} cannot be written in float32")
    return output


def differences(got: np.ndarray, expected: np.ndarray) -> tuple[str, str, str]:
    """Return the KL divergence, the relative error and the agreement of the likeliest tokens, as text."""
    if np.array_equal(got, expected):
        return "0", "0", "all, bit for bit"
    log_p, log_q = (
        each - np.logaddexp.reduce(each, axis=1, keepdims=True) for each in map(np.float64, (expected, got))
    )
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    return f"{kl:.1e}", f"{error:.1e}", f"{(got.argmax(axis=1) == expected.argmax(axis=1)).mean():.1%}"


def greedy(library: Path, model: Path, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the likeliest continuation of each prompt."""
    from libraries import run_python

    done = run_python(library, "-c", GREEDY, input_text=json.dumps([str(model.resolve()), ANSWER, *prompts]))
    if done.returncode:
        raise SystemExit(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    main()
