"""Options that say how a model is run; shared by run and chat."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from yarn_gguf.cli.options.numbers import not_negative_number, positive, positive_number, probability
from yarn_gguf.rope.dynamic import POLICIES
from yarn_gguf.rope.scaling import EXTENDING_METHODS


def configure(parser: argparse.ArgumentParser, *, context: str, temp: float, seed: int | None) -> None:
    """Add the options. context: the default of -c, in words. temp, seed: defaults; None: a random seed."""
    parser.add_argument("model", type=Path, help="the GGUF file")
    parser.add_argument("-c", "--ctx-size", type=positive, help=f"context in tokens (default: {context})")
    greedy = ": greedy" if temp == 0 else ""
    parser.add_argument(
        "--temp",
        type=not_negative_number,
        default=temp,
        help=f"sampling temperature (default {temp:g}{greedy})",
    )
    parser.add_argument(
        "--top-k", type=int, default=40, help="sample from at most this many tokens (default 40)"
    )
    parser.add_argument(
        "--top-p",
        type=probability,
        default=0.95,
        help="sample from tokens that sum up to this (default 0.95)",
    )
    parser.add_argument(
        "--min-p",
        type=probability,
        default=0.05,
        help="leave out tokens less likely than this times the likeliest (default 0.05)",
    )
    parser.add_argument(
        "--repeat-penalty",
        type=positive_number,
        default=1.0,
        help="divide the scores of recent tokens by this (default 1)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=seed,
        help=f"sampling seed (default: {'random' if seed is None else seed})",
    )
    parser.add_argument("-t", "--threads", type=positive, help="threads (default: all cores)")
    parser.add_argument("-ngl", "--gpu-layers", type=int, default=-1, help="layers on the GPU (default: all)")
    parser.add_argument(
        "--rope-scaling",
        choices=("none", *EXTENDING_METHODS),
        help="override the file, with the factor that makes the context fit",
    )
    parser.add_argument(
        "--dynamic",
        nargs="?",
        const="growth",
        choices=POLICIES,
        help="let the factor follow the length of the text (default policy: growth; default method: yarn)",
    )
    parser.add_argument(
        "--session",
        type=Path,
        metavar="FILE",
        help="go on from the text in FILE, with the prompt as the next message, and save to it",
    )
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="read the text of FILE again, if FILE is damaged or does not suit model and options",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system prompt, for templates that have one")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the native library's log")


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """Return the sampling parameters as Llama.sample names them."""
    return {name: getattr(args, name) for name in ("temp", "top_k", "top_p", "min_p", "repeat_penalty")}
