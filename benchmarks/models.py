"""The speed of models on the patched and the unpatched library, in turns, with ratios.

    python benchmarks/models.py MODEL.gguf [pp512 tg64 pp512@32768 …] [--kind static] [--rounds 9] [--gpu]

Tests have llama-bench's names: pp512 reads a prompt of 512 tokens, tg64 reads 64 tokens one by one, and @
gives the depth at which they begin. A prompt is read in batches of 512 tokens. MODEL may also be "1b" or
"8b": a Llama of that shape with random Q4_0 weights.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from paired import Contestant, add_options, compete, libraries_of, program_of

SHAPES = ("1b", "8b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("tests", nargs="*", default=["pp512", "pp4096", "tg64"])
    parser.add_argument(
        "--kind", choices=["none", "static"], default="none", help="no scaling, or static YaRN"
    )
    parser.add_argument("--rounds", type=int, default=9)
    add_options(parser)
    args = parser.parse_args()
    device = "gpu" if args.gpu else "cpu"
    ours = Contestant("ours", libraries_of(args))
    theirs = Contestant("unpatched", args.unpatched)
    with program_of(args, "model") as program, tempfile.TemporaryDirectory() as scratch:
        model = args.model
        if model in SHAPES:
            model = Path(scratch, f"{model}.gguf")
            ours.run([program, "write", args.model, model])
        for each in (ours, theirs):
            each.command = [program, "speed", model, device, args.kind, args.rounds, *args.tests]
        compete([theirs, ours])
    print(f"{args.model}, {args.kind}: tokens/s, medians of {args.rounds} rounds")
    print("| test | unpatched | ours | ratio |\n|---|---|---|---|")
    for name in ours.names():
        speeds = f"{theirs.median(name):.1f} | {ours.median(name):.1f}"
        print(f"| {name} | {speeds} | {ours.ratio(name, theirs):.3f} |")


if __name__ == "__main__":
    main()
