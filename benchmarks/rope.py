"""The time of the rope op: ours, the unpatched library's, and a plain copy of the same tensors, in turns.

    python benchmarks/rope.py [--rounds 9] [--threads 1 2] [--gpu]

Prints microseconds a layer, for Q and K of 30 layers: medians over rounds. Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import statistics

from paired import Contestant, add_options, compete, libraries_of, program_of


def row(threads: int, name: str, ours: Contestant, theirs: Contestant) -> str:
    """Return a row of the table."""
    rope, copy = f"rope {name}", f"copy {name}"
    share = statistics.median(each[copy] / each[rope] for each in ours.rounds)
    times = f"{theirs.median(rope):.1f} | {ours.median(rope):.1f} | {ours.median(copy):.1f}"
    return f"| {threads} | {name} | {times} | {theirs.ratio(rope, ours):.2f} | {100 * share:.0f}% |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads of the CPU")
    add_options(parser)
    args = parser.parse_args()
    device, all_threads = ("gpu", [1]) if args.gpu else ("cpu", args.threads)
    print("| threads | mode, type, heads, tokens | unpatched | ours | copy | times as fast | of the copy |")
    print("|---|---|---|---|---|---|---|")
    with program_of(args, "rope_op") as program:
        for threads in all_threads:
            command = [program, "speed", device, threads]
            theirs = Contestant("unpatched", args.unpatched, command)
            ours = Contestant("ours", libraries_of(args), command)
            compete([theirs, ours], args.rounds)
            for name in (name.removeprefix("rope ") for name in ours.names() if name.startswith("rope ")):
                print(row(threads, name, ours, theirs))


if __name__ == "__main__":
    main()
