"""The time of dynamic scaling: the same text read under growth and under static YaRN, in turns.

    python benchmarks/dynamic.py MODEL.gguf [--tokens 32768] [--gpu]

The text is read from its beginning in steps of --step tokens. The kinds take turns at each step. Prints:
    seconds beyond the trained 8192 tokens, and how much more they are than static scaling's, in steps with
        rotations and in other steps;
    the time of a rotation of the cached keys, by depth;
    prefill and decode at depth with a constant factor: the table of frequencies (by request) against the
        operands of static scaling, and against the unpatched library.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from paired import Contestant, add_options, compete, libraries_of, program_of

TRAINED = 8192
KINDS = ("static", "growth", "by request", "unpatched static", "growth:1.189", "growth:1.414")


def read_text(program: Path, args: argparse.Namespace, step: int) -> dict[str, Contestant]:
    """Let all kinds read one text in turns. Return the contestants with their rounds."""
    device = "gpu" if args.gpu else "cpu"
    contestants = {}
    for name in args.only:
        kind = name.split()[-1]
        folder = args.unpatched if name == "unpatched static" else libraries_of(args)
        command = [program, "growth", args.model, device, kind, args.tokens, step]
        contestants[name] = Contestant(name, folder, command)
    compete(list(contestants.values()))
    return contestants


def total(rounds: Iterable[dict[str, float]], value: str = "seconds") -> float:
    """Return the sum of a value over rounds."""
    return sum(each[value] for each in rounds)


def beyond(contestant: Contestant) -> list[dict[str, float]]:
    """Return the rounds beyond the trained context."""
    return [each for each in contestant.rounds if each["tokens"] > TRAINED]


def print_growth(contestants: dict[str, Contestant]) -> None:
    static = beyond(contestants["static"])
    print("| | seconds beyond 8k | ratio to static | rotations | more, in steps with rotations | in others |")
    print("|---|---|---|---|---|---|")
    for name, each in contestants.items():
        rounds = beyond(each)
        ratio = total(rounds) / total(static)
        more = [
            sum(
                mine["seconds"] - theirs["seconds"]
                for mine, theirs in zip(rounds, static, strict=True)
                if (mine["rotations"] > 0) == rotating
            )
            for rotating in (True, False)
        ]
        print(f"| {name} | {total(rounds):.2f} | {ratio:.4f} | {total(rounds, 'rotations'):.0f} ", end="")
        print(f"| {more[0]:.3f} s | {more[1]:.3f} s |")


def print_rotations(program: Path, args: argparse.Namespace) -> None:
    command = [program, "rotations", args.model, "gpu" if args.gpu else "cpu", args.tokens]
    print("\nOne rotation, by depth in tokens:", flush=True)
    Contestant("ours", libraries_of(args)).run(command)


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
    parser.add_argument(
        "--only", nargs="+", default=KINDS[:4], choices=KINDS, metavar="KIND", help="static, and others"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds at each depth; 0: no depths")
    parser.add_argument("--step", type=int, help="tokens (default: 1024, on a GPU 8192)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every step's values")
    add_options(parser)
    args = parser.parse_args()
    if args.tokens <= TRAINED:
        parser.error(f"--tokens must be more than {TRAINED}: a shorter text is not scaled")
    with program_of(args, "model") as program:
        contestants = read_text(program, args, args.step or (8192 if args.gpu else 1024))
        print_growth(contestants)
        if args.json:
            args.json.write_text(json.dumps({name: each.rounds for name, each in contestants.items()}))
        print_rotations(program, args)
        if args.rounds:
            print_depths(program, args)


if __name__ == "__main__":
    main()
