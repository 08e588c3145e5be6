"""yarn-gguf eval passkey: does the model find a number hidden in a long text, at every length and depth?"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from rich.console import Console

from yarn_gguf.cli.options import evaluation as common
from yarn_gguf.cli.options.numbers import positive
from yarn_gguf.cli.screen.progress import labelled_progress
from yarn_gguf.cli.screen.results import finish
from yarn_gguf.errors import require_once
from yarn_gguf.evaluate.passkey import Style, trials

HELP = "does the model find a number hidden in a long text, at every length and depth?"


def configure(parser: argparse.ArgumentParser) -> None:
    common.configure(parser)
    parser.add_argument(
        "--lengths", type=positive, nargs="+", required=True, metavar="TOKENS", help="lengths of the prompts"
    )
    parser.add_argument("--depths", type=positive, default=5, help="number of places for the key (default 5)")
    parser.add_argument("--trials", type=positive, default=1, help="prompts for each of them (default 1)")
    parser.add_argument("--keys", type=int, default=1, help="keys in each prompt; it asks for one")
    parser.add_argument("--chat", action="store_true", help="use the model's chat template")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> None:
    common.check_outputs(args, [])
    finish(args, "passkey", {"keys": args.keys, "chat": args.chat, "seed": args.seed}, _measure(args))


def _measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    from yarn_gguf.evaluate.compare import compare_passkey  # loads the native library

    require_once(map(str, args.lengths), "--lengths")
    style = Style(args.keys, args.chat)
    depths = [i / max(1, args.depths - 1) for i in range(args.depths)]
    rows = []
    errors = Console(stderr=True)
    with common.loaded(args, max(args.lengths)) as llama, labelled_progress(errors, "prompts") as label:
        next(trials(llama, [min(args.lengths)], depths, 1, style))  # raises for a length without room
        for length in args.lengths:
            variants = common.variants_of(args, length)
            cells = compare_passkey(
                llama, variants, length, depths, args.trials, style, args.seed, common.results_of(args), label
            )
            rows += [asdict(each) for each in cells]
    return rows
