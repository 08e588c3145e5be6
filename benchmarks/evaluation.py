"""Cost of an evaluation compared with bare reading: time and peak memory of one pass over a long text.

    python benchmarks/evaluation.py MODEL.gguf TEXT [--tokens 8192] [--llama-perplexity PROGRAM]

The context has --context tokens, and so has the cache. --tokens of them are read. The ratio of times is that
for the tokens read.

The measurements alternate, each in a separate process. The table has medians over the runs, and medians of
the ratios within each run. Seconds do not include the loading of the model, except for llama-perplexity,
which is not part of the pinned source and has a context of --tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

BARE, OURS, UPSTREAM = "reading", "yarn-gguf's losses", "llama-perplexity"


def child(kind: str, args: argparse.Namespace) -> None:
    """Read the text in this process, and print the seconds that it took."""
    from yarn_gguf import Llama
    from yarn_gguf.evaluate.reading.documents import read_documents
    from yarn_gguf.evaluate.reading.losses import token_losses

    (document,) = read_documents(args.model, [args.text], args.tokens)
    settings = {"n_ctx": args.context, "n_threads": args.threads, "n_gpu_layers": args.gpu_layers}
    with closing(Llama(args.model, rope_scaling="yarn", flash_attn=True, verbose=False, **settings)) as llama:
        llama.prefill(document.tokens[:64].tolist())  # warm up
        llama.reset()
        start = time.perf_counter()
        if kind == BARE:
            llama.prefill(document.tokens.tolist())
        else:
            token_losses(llama, document.tokens.tolist())
        print(json.dumps(time.perf_counter() - start))


def measure(command: Sequence[object]) -> tuple[float, float]:
    """Run a command; return its seconds, as it prints them or by the clock, and its peak memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(map(str, command))}")
    seconds = json.loads(said) if command[0] == sys.executable else time.perf_counter() - start
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens to read")
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--gpu-layers", type=int, default=0)
    parser.add_argument("--llama-perplexity", type=Path, metavar="PROGRAM")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args)
        return
    here = [sys.executable, __file__, args.model, args.text]
    for name in ("tokens", "context", "threads", "gpu_layers"):
        here += [f"--{name.replace('_', '-')}", getattr(args, name)]
    commands = {kind: [*here, "--child", kind] for kind in (BARE, OURS)}
    if args.llama_perplexity:
        options = ["-c", args.tokens, "--chunks", 1, "-t", args.threads, "-fa", "on", "-ngl", args.gpu_layers]
        commands[UPSTREAM] = [args.llama_perplexity, "-m", args.model, "-f", args.text, *options]
    runs = [{kind: measure(command) for kind, command in commands.items()} for _ in range(args.runs)]
    print("| | seconds | ratio | peak memory, MB | ratio |\n|---|---|---|---|---|")
    for kind in commands:
        cells = []
        for i in (0, 1):
            values = [run[kind][i] for run in runs]
            ratio = statistics.median(run[kind][i] / run[BARE][i] for run in runs)
            cells.append(f"{statistics.median(values):.1f} | {ratio:.3f}")
        print(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
