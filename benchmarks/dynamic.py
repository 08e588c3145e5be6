"""What dynamic scaling costs: the same text read under growth and under static YaRN, in turns.

    python benchmarks/dynamic.py MODEL.gguf [--tokens 32768] [--gpu]

The text is read from its beginning in steps of 1024 tokens (8192 on a GPU), each library and kind its step
after the others. Prints seconds for what lies beyond the trained 8192 tokens, and by depth the rotations.
Then prefill and decode at depth, when s rests: a table of frequencies (by request) against the operands of
static scaling, and against the unpatched library.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from paired import Contestant, add_options, compete, libraries_of, program_of

TRAINED = 8192


def read_text(program: Path, args: argparse.Namespace, step: int) -> dict[str, Contestant]:
    """Everybody's rounds over one text."""
    libraries = libraries_of(args)
    device = "gpu" if args.gpu else "cpu"
    kinds = {
        "growth": ("growth", libraries),
        "by request": ("request", libraries),
        "static": ("static", libraries),
        "unpatched, static": ("static", args.unpatched),
    }
    contestants = {}
    for name, (kind, folder) in kinds.items():
        command = [program, "growth", args.model, device, kind, args.tokens, step]
        contestants[name] = Contestant(name, folder, command)
    compete(list(contestants.values()))
    return contestants


def total(contestant: Contestant, value: str, low: int = TRAINED, high: float = float("inf")) -> float:
    """Of the rounds that end in (low, high] tokens."""
    return sum(each[value] for each in contestant.rounds if low < each["tokens"] <= high)


def print_growth(contestants: dict[str, Contestant]) -> None:
    static = total(contestants["static"], "seconds")
    print("| | seconds beyond 8k | ratio to static | rotations | seconds in rotations | share |")
    print("|---|---|---|---|---|---|")
    for name, each in contestants.items():
        seconds, rotating = total(each, "seconds"), total(each, "rotating")
        numbers = f"{total(each, 'rotations'):.0f} | {rotating:.3f} | {100 * rotating / seconds:.3f}%"
        print(f"| {name} | {seconds:.2f} | {seconds / static:.4f} | {numbers} |")
    print("\n| growth, to | s | rotations | ms each | share of the time |\n|---|---|---|---|---|")
    growth = contestants["growth"]
    low, last = TRAINED, growth.rounds[-1]["tokens"]
    while low < last:
        high = 2 * low
        rotations, seconds = total(growth, "rotations", low, high), total(growth, "rotating", low, high)
        factor = max(each["factor"] for each in growth.rounds if each["tokens"] <= high)
        share = 100 * seconds / total(growth, "seconds", low, high)
        each = 1e3 * seconds / rotations if rotations else 0.0
        print(f"| {high} | {factor:.3f} | {rotations:.0f} | {each:.2f} | {share:.3f}% |")
        low = high


def print_depths(program: Path, args: argparse.Namespace) -> None:
    libraries = libraries_of(args)
    depths = [depth for depth in (0, 8192, 32768, 131072) if depth < args.tokens] + [args.tokens - 1024]
    tests = [f"{test}@{depth}" for depth in depths for test in ("pp512", "tg64")]
    device = "gpu" if args.gpu else "cpu"
    kinds = (("request", libraries), ("static", libraries), ("static", args.unpatched))
    contestants = []
    for kind, folder in kinds:
        command = [program, "speed", args.model, device, kind, args.rounds, *tests]
        contestants.append(Contestant(kind, folder, command))
    compete(contestants)
    request, static, unpatched = contestants
    print("\n| test | tokens/s by request | to static | to unpatched static |\n|---|---|---|---|")
    for name in request.names():
        ratios = f"{request.ratio(name, static):.3f} | {request.ratio(name, unpatched):.3f}"
        print(f"| {name} | {request.median(name):.1f} | {ratios} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=5, help="at each depth; 0: growth alone")
    add_options(parser)
    args = parser.parse_args()
    if args.tokens <= TRAINED:
        parser.error(f"--tokens must be more than {TRAINED}, below which nothing is scaled")
    with program_of(args, "model") as program:
        print_growth(read_text(program, args, 8192 if args.gpu else 1024))
        if args.rounds:
            print_depths(program, args)


if __name__ == "__main__":
    main()
