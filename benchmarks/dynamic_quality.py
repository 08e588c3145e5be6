"""Perplexity by position without YaRN and under static and dynamic YaRN, on long texts.

    python benchmarks/dynamic_quality.py MODEL.gguf TEXT… [--tokens 32768] [--results FOLDER] [--gpu]

Each text is read once under each scaling, from its beginning, with flash attention. The model's trained
context must be 8192. Prints a Markdown table with the geometric mean of perplexity over the texts. The paired
difference is in brackets, with its standard error over the texts: to plain up to the trained context, to
static x2 up to twice that, and to static x4 beyond. FOLDER keeps the measurements and the texts' tokens. A
second run continues, and several runs may share the work, each with different texts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from paired import Contestant, add_options, libraries_of, program_of

TRAINED = 8192


@dataclass(frozen=True)
class Variant:
    """A way to read the texts. kind: the name in model.cpp."""

    name: str
    kind: str
    batch: int = 512
    tokens: int = 1 << 30  # of each text, at most
    cache: str = "f16"


VARIANTS = (
    Variant("plain", "none"),
    Variant("static x2", "static:2"),
    Variant("static x4", "static:4"),
    Variant("by request of 16k", "request:2", tokens=16384),
    Variant("by request of 32k", "request:4"),
    Variant("growth", "growth"),
    Variant("growth, steps of 1.09", "growth:1.0905077"),
    Variant("growth, steps of 1.19", "growth:1.1892071"),
    Variant("growth, steps of 1.41", "growth:1.4142136"),
    Variant("exact by batches, f32 cache", "exact", cache="f32"),
    Variant("plain by token", "none", batch=1, tokens=8192),
    Variant("growth by token", "growth", batch=1, tokens=16384),
    Variant("exact by token, f32 cache", "exact", batch=1, tokens=12288, cache="f32"),
    Variant("static x2, q8_0 cache", "static:2", cache="q8_0"),
    Variant("growth, q8_0 cache", "growth", cache="q8_0"),
    Variant("static x2, q4_0 cache", "static:2", cache="q4_0"),
    Variant("growth, q4_0 cache", "growth", cache="q4_0"),
)


def tokens_of(text: Path, model: Path, folder: Path) -> np.ndarray:
    """Return the tokens of the whole text: int32."""
    path = folder / f"{text.name}.tokens"
    if not path.exists():
        from yarn_gguf.run.prompt import text_tokens

        np.array(text_tokens(model, text.read_text(encoding="utf-8")), np.int32).tofile(path)
    return np.fromfile(path, np.int32)


def measure(
    library: Contestant, program: Path, args: argparse.Namespace, variant: Variant, text: Path
) -> dict:
    """Return the loss at each position, the seconds, and the final factor and rotations."""
    count = min(args.tokens, variant.tokens)
    tokens = tokens_of(text, args.model, args.results)[:count]
    if len(tokens) < count:
        raise SystemExit(f"{text} has {len(tokens)} tokens, {count} are needed")
    device = "gpu" if args.gpu else "cpu"
    start = time.perf_counter()
    command = [program, "losses", args.model, device, variant.kind, variant.cache, variant.batch]
    lines = library.run(command, input=tokens.tobytes(), stdout=subprocess.PIPE).stdout.decode().splitlines()
    state = {name: float(value) for name, _, value in (line.partition("\t") for line in lines[-2:])}
    losses = [round(float(line), 4) for line in lines[:-2]]
    return {"losses": losses, "seconds": time.perf_counter() - start} | state


class Results:
    """The losses by variant and text, each in a file."""

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

    def mean(self, name: str, text: str, span: tuple[int, int]) -> float | None:
        """Return the mean loss in a range of positions; None unless it was read to its end.

        The last token of a text has no loss.
        """
        losses = self.losses(name, text)
        if losses is None or len(losses) < span[1] - 1:
            return None
        return float(np.mean(losses[span[0] : span[1] - 1]))


def table(results: Results, texts: list[str], count: int) -> str:
    edges = [TRAINED * i // 4 for i in range(9)] + [TRAINED * i // 2 for i in range(5, 9)]
    ranges = [span for span in itertools.pairwise(edges) if span[1] <= count]
    lines = ["| | " + " | ".join(f"{a // 1024}-{b // 1024}k" for a, b in ranges) + " |"]
    lines.append("|---|" + "---|" * len(ranges))
    for variant in VARIANTS:
        done = [text for text in texts if results.losses(variant.name, text) is not None]
        if done:
            cells = [_cell(results, done, variant.name, span) for span in ranges]
            lines.append(f"| {variant.name} ({len(done)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(results: Results, texts: list[str], name: str, span: tuple[int, int]) -> str:
    means = [results.mean(name, text, span) for text in texts]
    if None in means:
        return ""
    cell = f"{math.exp(np.mean(means)):.2f}"
    best = "plain" if span[1] <= TRAINED else "static x2" if span[1] <= 2 * TRAINED else "static x4"
    against = [results.mean(best, text, span) for text in texts]
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
    add_options(parser)
    args = parser.parse_args()
    results = Results(args.results)
    library = Contestant("ours", libraries_of(args))
    with program_of(args, "model") as program:
        for text, variant in itertools.product(args.texts, VARIANTS):
            path = results.path(variant.name, text.name)
            if variant.name in args.only and not path.exists():
                done = measure(library, program, args, variant, text)
                path.write_text(json.dumps(done))
                print(f"{text.stem}, {variant.name}: {done['seconds']:.1f} s", end=", ")
                print(f"s = {done['factor']:.3f}, {done['rotations']:.0f} rotations")
    print(table(results, [text.name for text in args.texts], args.tokens))


if __name__ == "__main__":
    main()
