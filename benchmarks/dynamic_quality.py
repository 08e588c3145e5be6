"""Perplexity by position under no, static and dynamic scaling, on long texts.

    python benchmarks/dynamic_quality.py MODEL.gguf TEXT… [--tokens 32768] [--results FOLDER] [--gpu]

Each text is read once under each scaling, from its beginning, with flash attention. Prints a Markdown
table: the geometric mean of perplexity over the texts and, in brackets, the ratio to plain below the trained
context, to static x2 up to twice that, and to static x4 beyond, with the standard error over the texts.
FOLDER keeps what has been measured; a second run goes on, and several may share the work, each with texts of
its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yarn_gguf import DynamicScaling, RopeScaling
from yarn_gguf.evaluate.perplexity import token_losses
from yarn_gguf.gguf_rope import read_model
from yarn_gguf.llama import Llama, llama_cpp
from yarn_gguf.prompt import prompt_tokens

X2, X4 = RopeScaling("yarn", 2.0), RopeScaling("yarn", 4.0)
GROWTH = DynamicScaling()


@dataclass(frozen=True)
class Variant:
    name: str
    scaling: RopeScaling | DynamicScaling | str
    batch: int = 512
    tokens: int = 1 << 30  # of a text, at most
    cache: str = "F16"


VARIANTS = (
    Variant("plain", "none"),
    Variant("static x2", X2),
    Variant("static x4", X4),
    Variant("by request of 16k", DynamicScaling(policy="request"), tokens=16384),
    Variant("by request of 32k", DynamicScaling(policy="request")),
    Variant("growth", GROWTH),
    Variant("exact, by batches", DynamicScaling(policy="exact")),
    Variant("growth by token", GROWTH, batch=1, tokens=16384),
    Variant("exact by token", DynamicScaling(policy="exact"), batch=1, tokens=16384),
    Variant("static x2, q8_0 cache", X2, cache="Q8_0"),
    Variant("growth, q8_0 cache", GROWTH, cache="Q8_0"),
    Variant("static x2, q4_0 cache", X2, cache="Q4_0"),
    Variant("growth, q4_0 cache", GROWTH, cache="Q4_0"),
)


def measure(model: Path, text: Path, variant: Variant, count: int, gpu: bool) -> dict:
    """Losses at each position, and what the rotations cost."""
    tokens = prompt_tokens(model, text.read_text(encoding="utf-8"), chat=False)[:count]
    if len(tokens) < count:
        raise SystemExit(f"{text} has {len(tokens)} tokens, {count} are needed")
    type_ = getattr(llama_cpp, f"GGML_TYPE_{variant.cache}")
    options = {"n_batch": variant.batch, "n_ubatch": variant.batch, "type_k": type_, "type_v": type_}
    options |= {"flash_attn": True, "n_threads": 2, "verbose": False, "n_gpu_layers": -1 if gpu else 0}
    with closing(Llama(model, n_ctx=count, rope_scaling=variant.scaling, **options)) as llama:
        start = time.perf_counter()
        losses = token_losses(llama, tokens)
        seconds = time.perf_counter() - start
        state = llama.dynamic_state
    rotations = {"count": state.rotations, "seconds": state.microseconds / 1e6, "factor": state.factor}
    return {"losses": np.round(losses, 4).tolist(), "seconds": seconds, "rotations": rotations}


class Results:
    """Losses by variant and text, each in a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._losses: dict[Path, np.ndarray] = {}

    def path(self, name: str, text: str) -> Path:
        return self._folder / f"{name.replace(' ', '_').replace(',', '')}.{text}.json"

    def losses(self, name: str, text: str) -> np.ndarray | None:
        path = self.path(name, text)
        if path not in self._losses and path.exists():
            self._losses[path] = np.array(json.loads(path.read_text())["losses"])
        return self._losses.get(path)

    def mean(self, name: str, text: str, bucket: tuple[int, int]) -> float | None:
        """Of the losses in a bucket; None unless it was read to its end."""
        losses = self.losses(name, text)
        if losses is None or len(losses) < bucket[1] - 1:
            return None
        return float(np.mean(losses[bucket[0] : bucket[1]]))


def table(results: Results, texts: list[str], trained: int, count: int) -> str:
    edges = [trained * i // 4 for i in range(9)] + [trained * i // 2 for i in range(5, 9)]
    buckets = [bucket for bucket in itertools.pairwise(edges) if bucket[1] <= count]
    lines = ["| | " + " | ".join(f"{a // 1024}-{b // 1024}k" for a, b in buckets) + " |"]
    lines.append("|---|" + "---|" * len(buckets))
    for variant in VARIANTS:
        done = [text for text in texts if results.losses(variant.name, text) is not None]
        if done:
            cells = [_cell(results, done, variant.name, bucket, trained) for bucket in buckets]
            lines.append(f"| {variant.name} ({len(done)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(results: Results, texts: list[str], name: str, bucket: tuple[int, int], trained: int) -> str:
    means = [results.mean(name, text, bucket) for text in texts]
    if None in means:
        return ""
    cell = f"{math.exp(np.mean(means)):.2f}"
    best = "plain" if bucket[1] <= trained else "static x2" if bucket[1] <= 2 * trained else "static x4"
    against = [results.mean(best, text, bucket) for text in texts]
    if name == best or None in against:
        return cell
    ratios = np.array(means) - against
    spread = f" ± {100 * np.std(ratios, ddof=1) / math.sqrt(len(ratios)):.2f}" if len(ratios) > 1 else ""
    return f"{cell} ({100 * np.expm1(np.mean(ratios)):+.2f}{spread}%)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--results", type=Path, default=Path("dynamic_quality"))
    parser.add_argument(
        "--only", nargs="+", default=[variant.name for variant in VARIANTS], metavar="VARIANT"
    )
    parser.add_argument("--gpu", action="store_true")
    args = parser.parse_args()
    results = Results(args.results)
    for text, variant in itertools.product(args.texts, VARIANTS):
        path = results.path(variant.name, text.name)
        if variant.name in args.only and not path.exists():
            done = measure(args.model, text, variant, min(args.tokens, variant.tokens), args.gpu)
            path.write_text(json.dumps(done))
            turns = done["rotations"]
            print(
                f"{text.stem}, {variant.name}: {done['seconds']:.1f} s, {turns['count']} rotations, "
                f"{100 * turns['seconds'] / done['seconds']:.2f}% of it, s = {turns['factor']:.3f}"
            )
    print(
        table(
            results, [text.name for text in args.texts], read_model(args.model).original_context, args.tokens
        )
    )


if __name__ == "__main__":
    main()
