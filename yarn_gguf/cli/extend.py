"""yarn-gguf extend: give a model another rope scaling, and with it another context."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from yarn_gguf.cli.options import scaling
from yarn_gguf.cli.screen.terminal import printable
from yarn_gguf.disk.replace import require_replaceable
from yarn_gguf.errors import RopeScalingError
from yarn_gguf.model_file.extend import Extension, extend, rope_from_hf
from yarn_gguf.model_file.warnings import warnings
from yarn_gguf.rope.read import read_model
from yarn_gguf.rope.scaling import RopeScaling

HELP = "give a model another rope scaling, and with it another context"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
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
    scaling.configure(parser)
    parser.add_argument("--force", action="store_true", help="replace OUT.gguf if it exists")


def main(args: argparse.Namespace) -> None:
    """Run the command. Raises YarnGGUFError, OSError."""
    asked, options = _scaling(args)
    done = extend(
        args.model,
        asked,
        output=args.output,
        original_context=args.original_context,
        force=args.force,
        **options,
    )
    Console(highlight=False, soft_wrap=True).print(_summary(done), markup=False)


def _scaling(args: argparse.Namespace) -> tuple[RopeScaling, dict[str, Any]]:
    """Return the scaling, and the arguments of `extend` that belong to it. Raises YarnGGUFError."""
    if args.from_hf is None:
        return scaling.scaling(args), {"dynamic": args.dynamic}
    if given := scaling.given_options(args):
        raise RopeScalingError(
            f"--from-hf takes the scaling from the checkpoint: leave out {', '.join(given)}"
        )
    rope = rope_from_hf(args.model, args.from_hf)
    if args.output:
        require_replaceable(args.output, [rope.path])
    static = rope.scaling.with_original_context(rope.original_context)
    return static, {
        "context_length": rope.max_position_embeddings,
        "dynamic": rope.dynamic_by(args.dynamic),
        "finetuned": rope.finetuned,
    }


def _summary(done: Extension) -> str:
    new = done.scaling
    how = {
        "unchanged": "already has this scaling; nothing was written",
        "in place": f"changed in place, {done.bytes_written:,} bytes",
        "copied": f"written, {done.bytes_written:,} bytes",
    }
    asks, temperature = new.method, f"temperature {new.temperature():.4f}"
    if new.method != "none":
        asks += f", factor {new.factor:g}, from {new.original_max_position_embeddings:,} tokens"
    if done.dynamic is not None:
        asks = f"dynamic ({done.dynamic.policy}), up to {asks}"
        temperature = "the temperature follows the factor"
    lines = [
        f"{done.path}: {how[done.how]}",
        f"rope scaling: {asks}; {temperature}",
        f"context: {done.context_length:,} tokens",
    ]
    if done.replaced is not None:
        lines.append(f"note: the model was trained with {done.replaced.method} scaling, which this replaces")
    lines += [f"warning: {printable(each)}" for each in warnings(read_model(done.path))]
    return "\n".join(lines)
