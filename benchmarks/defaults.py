"""Cost and gain of Llama's defaults: other values, measured alternately with them.

    python benchmarks/defaults.py MODEL.gguf TEXT [--tokens 4096] [--rounds 3] [--threads N]

The table has, for each of them:

- tokens per second of CPU time, for reading the text and for writing an answer of 32 tokens after it, as
  ratios of medians to the defaults' (more than 1 is faster). CPU time counts all threads, and depends little
  on other work of the machine.
- the cache and the compute buffers, in MiB
- the perplexity of the text

Run it with OMP_WAIT_POLICY=passive: threads that spin count as work. --rounds 0 leaves out the times.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from yarn_gguf.evaluate.reading.losses import token_losses
from yarn_gguf.native.cache_types import CACHE_TYPES
from yarn_gguf.native.memory import memory_of
from yarn_gguf.run.llama import Llama

ANSWER = 32  # tokens


def of_type(name: str) -> dict[str, int]:
    return {"type_k": CACHE_TYPES[name], "type_v": CACHE_TYPES[name], "flash_attn": True}


OTHERS: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "flash_attn=False": {"flash_attn": False},
    "n_ubatch=64": {"n_ubatch": 64},
    "n_ubatch=128": {"n_ubatch": 128},
    "n_ubatch=2048, and n_batch": {"n_ubatch": 2048, "n_batch": 2048},
    "cache of f32": of_type("f32"),
    "cache of q8_0": of_type("q8_0"),
    "cache of q4_0": of_type("Q4_0"),
}


def timed(llama: Llama, tokens: list[int]) -> tuple[float, float]:
    """Return tokens per second of CPU time: of reading, and of writing."""
    llama.reset()
    start = time.process_time()
    llama.prefill(tokens)
    read = time.process_time()
    written = len([*itertools.islice(llama.generate(tokens, temp=0.0), ANSWER)])
    return len(tokens) / (read - start), written / (time.process_time() - read)


def memory(llama: Llama) -> tuple[float, float]:
    """Return the MiB of the cache, and of the compute buffers."""
    found = memory_of(llama._ctx.ctx)
    caches = (found.attention, found.window, found.recurrent)
    return sum(each.bytes.host for each in caches) / 2**20, found.compute.host / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()

    def opened(settings: dict[str, Any]) -> Llama:
        n_ctx = args.tokens + 2 * ANSWER
        return Llama(args.model, n_ctx=n_ctx, n_threads=args.threads, verbose=False, **settings)

    with closing(opened({})) as llama:
        tokens = llama.tokenize(args.text.read_bytes())[: args.tokens]
    columns = {}
    for name, settings in OTHERS.items():
        with closing(opened(settings)) as llama:
            perplexity = np.exp(np.mean(token_losses(llama, tokens)))
            columns[name] = [*(f"{size:.0f}" for size in memory(llama)), f"{perplexity:.4f}"]
    console = Console()
    console.print("Now the times.")
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in OTHERS}
    for name, settings in [*OTHERS.items()] * args.rounds:
        with closing(opened(settings)) as llama:
            speeds[name].append(timed(llama, tokens))
    table = Table("", "reading", "writing", "cache, MiB", "computing, MiB", "perplexity")
    medians = {name: np.median(found, axis=0) for name, found in speeds.items() if found}
    for name in OTHERS:
        ratios = medians[name] / medians["the defaults"] if medians else []
        table.add_row(name, *([f"{each:.2f}" for each in ratios] or ["", ""]), *columns[name])
    console.print(table)
    if medians:
        usual = "The defaults read {:.0f} tokens, and write {:.1f}, in a second of CPU time."
        console.print(usual.format(*medians["the defaults"]))


if __name__ == "__main__":
    main()
