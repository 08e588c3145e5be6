"""yarn-gguf extend: give a model another rope scaling, and with it another context."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from yarn_gguf.dynamic import POLICIES
from yarn_gguf.errors import RopeScalingError
from yarn_gguf.extend import Extension, extend, scaling_from_hf
from yarn_gguf.rope import METHODS, RAMPS, RopeScaling

HELP = "give a model another rope scaling, and with it another context"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="IN.gguf", help="the GGUF file")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("-o", "--output", type=Path, metavar="OUT.gguf", help="write a new file")
    target.add_argument("--in-place", action="store_true", help="change the file where it is")
    parser.add_argument(
        "--from-hf",
        type=Path,
        metavar="FOLDER",
        help="take the scaling from config.json of the checkpoint that the file was made from",
    )
    methods = [method for method in METHODS if method not in ("explicit", "longrope")]  # lists: from Python
    parser.add_argument("--method", choices=methods, help="default: yarn")
    parser.add_argument("--factor", type=float, help="extended context / original context")
    parser.add_argument("--original-context", type=int, metavar="TOKENS", help="default: what the file says")
    parser.add_argument("--beta-fast", type=float, default=32.0, help="rotations where blending begins (32)")
    parser.add_argument("--beta-slow", type=float, default=1.0, help="rotations where blending ends (1)")
    parser.add_argument("--attention-factor", type=float, help="temperature (default: the method's own)")
    parser.add_argument("--ramp", choices=RAMPS, default="index", help="blend by index or by rotations")
    parser.add_argument("--no-truncate", action="store_true", help="do not round the ramp's bounds")
    parser.add_argument("--low-freq-factor", type=float, help="llama3: rotations where blending ends")
    parser.add_argument("--high-freq-factor", type=float, help="llama3: rotations where blending begins")
    parser.add_argument(
        "--dynamic",
        nargs="?",
        const="growth",
        choices=POLICIES,
        help="let the factor follow the length of the text, up to --factor (default policy: growth)",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT.gguf if it exists")


def main(args: argparse.Namespace) -> None:
    done = extend(
        args.model,
        _scaling(args),
        output=args.output,
        original_context=args.original_context,
        dynamic=args.dynamic,
        force=args.force,
    )
    Console(highlight=False, soft_wrap=True).print(_summary(done), markup=False)


def _scaling(args: argparse.Namespace) -> RopeScaling:
    if args.from_hf is not None:
        if args.factor is not None or args.method is not None:
            raise RopeScalingError("--from-hf takes method and factor from the checkpoint: leave them out")
        return scaling_from_hf(args.model, args.from_hf)
    method = args.method or "yarn"
    if args.factor is None and method != "none":
        raise RopeScalingError(f"the method {method} needs --factor, the extended / the original context")
    return RopeScaling(
        method,
        1.0 if args.factor is None else args.factor,
        beta_fast=args.beta_fast,
        beta_slow=args.beta_slow,
        ramp=args.ramp,
        truncate=not args.no_truncate,
        attention_factor=args.attention_factor,
        low_freq_factor=args.low_freq_factor,
        high_freq_factor=args.high_freq_factor,
    )


def _summary(done: Extension) -> str:
    scaling = done.scaling
    how = {
        "unchanged": "said so already; nothing was written",
        "in place": f"changed in place, {done.bytes_written:,} bytes",
        "copied": f"written, {done.bytes_written:,} bytes",
    }
    asks = scaling.method
    if scaling.method != "none":
        asks += f", factor {scaling.factor:g}, from {scaling.original_max_position_embeddings:,} tokens"
    return (
        f"{done.path}: {how[done.how]}\n"
        f"rope scaling: {asks}, temperature {scaling.temperature():.4f}\n"
        f"context: {done.context_length:,} tokens"
    )
