"""Perplexity by position under no, static and dynamic scaling, on long texts.

    python benchmarks/dynamic_quality.py MODEL.gguf TEXT… [--tokens 16384] [--results RESULTS.json]

Each text is read once under each scaling, from its beginning, with an f16 cache and flash attention. "by
token" feeds it one token at a time, as text is generated. Prints a Markdown table: the geometric mean over
the texts and, for more than one, the log ratio to plain below the trained context and to static x2 beyond,
with its standard error. RESULTS.json keeps what has been measured; a second run goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from yarn_gguf import DynamicScaling, RopeScaling
from yarn_gguf.evaluate.perplexity import token_losses
from yarn_gguf.gguf_rope import read_model
from yarn_gguf.llama import Llama
from yarn_gguf.prompt import prompt_tokens

VARIANTS = {
    "plain": ("none", 512),
    "static x2": (RopeScaling("yarn", 2.0), 512),
    "static x4": (RopeScaling("yarn", 4.0), 512),
    "growth": (DynamicScaling(), 512),
    "growth by token": (DynamicScaling(), 1),
}


def measure(model: Path, text: Path, name: str, count: int) -> dict:
    """Losses at each position, and what the rotations cost."""
    scaling, batch = VARIANTS[name]
    tokens = prompt_tokens(model, text.read_text(encoding="utf-8"), chat=False)[:count]
    if len(tokens) < count:
        raise SystemExit(f"{text} has {len(tokens)} tokens, {count} are needed")
    options = {"n_batch": batch, "n_ubatch": batch, "flash_attn": True, "n_threads": 2, "verbose": False}
    with closing(Llama(model, n_ctx=count, rope_scaling=scaling, **options)) as llama:
        start = time.perf_counter()
        losses = token_losses(llama, tokens)
        seconds = time.perf_counter() - start
        state = llama.dynamic_state
    rotations = {"count": state.rotations, "seconds": state.microseconds / 1e6}
    return {"losses": np.round(losses, 5).tolist(), "seconds": seconds, "rotations": rotations}


def table(results: dict, texts: list[str], edges: list[int], trained: int) -> str:
    buckets = list(itertools.pairwise(edges))
    lines = ["| | " + " | ".join(f"{a // 1024}-{b // 1024}k" for a, b in buckets) + " |"]
    lines.append("|---|" + "---|" * len(buckets))
    for name in VARIANTS:
        done = [text for text in texts if f"{name}: {text}" in results]
        if done:
            cells = [_cell(results, done, name, bucket, trained) for bucket in buckets]
            lines.append(f"| {name} ({len(done)} texts) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(results: dict, texts: list[str], name: str, bucket: tuple[int, int], trained: int) -> str:
    means = [_mean(results, name, text, bucket) for text in texts]
    cell = f"{math.exp(np.mean(means)):.2f}"
    against = "plain" if bucket[1] <= trained else "static x2"
    if name == against or any(f"{against}: {text}" not in results for text in texts):
        return cell
    ratios = np.array(means) - [_mean(results, against, text, bucket) for text in texts]
    spread = f" ± {100 * np.std(ratios, ddof=1) / math.sqrt(len(ratios)):.1f}" if len(ratios) > 1 else ""
    return f"{cell} ({100 * np.expm1(np.mean(ratios)):+.1f}{spread}%)"


def _mean(results: dict, name: str, text: str, bucket: tuple[int, int]) -> float:
    return float(np.mean(results[f"{name}: {text}"]["losses"][bucket[0] : bucket[1]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--results", type=Path, default=Path("dynamic_quality.json"))
    args = parser.parse_args()
    results = json.loads(args.results.read_text()) if args.results.exists() else {}
    for text in args.texts:
        for name in VARIANTS:
            key = f"{name}: {text.name}"
            if key not in results:
                results[key] = measure(args.model, text, name, args.tokens)
                args.results.write_text(json.dumps(results))
    trained = read_model(args.model).original_context
    edges = [trained * i // 4 for i in range(4 * args.tokens // trained + 1)]
    print(table(results, [text.name for text in args.texts], edges, trained))
    for key, result in results.items():
        turns = result["rotations"]
        share = 100 * turns["seconds"] / result["seconds"]
        print(f"{key}: {result['seconds']:.0f} s, {turns['count']} rotations, {share:.2f}% of it")


if __name__ == "__main__":
    main()
