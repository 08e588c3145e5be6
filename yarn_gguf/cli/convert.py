"""yarn-gguf convert: convert a Hugging Face checkpoint or a LoRA adapter to a GGUF file, in one pass."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from yarn_gguf.cli.options import scaling
from yarn_gguf.cli.options.numbers import positive
from yarn_gguf.cli.options.sizes import decimal_size
from yarn_gguf.cli.screen.progress import writing_progress
from yarn_gguf.convert.types import TYPES

if TYPE_CHECKING:
    from yarn_gguf.convert.plan import ConversionPlan

HELP = "convert a Hugging Face checkpoint or a LoRA adapter to a GGUF file, in one pass"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", type=Path, metavar="SRC", help="the folder of the checkpoint or adapter"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT.gguf", help="the file to write"
    )
    parser.add_argument(
        "--type",
        choices=TYPES,
        required=True,
        metavar="TYPE",
        help=f"type of the weights: {', '.join(TYPES)}",
    )
    parser.add_argument(
        "--imatrix", type=Path, metavar="FILE", help="an importance matrix of llama.cpp's (GGUF)"
    )
    parser.add_argument(
        "--lora", type=Path, metavar="ADAPTER", help="the folder of a LoRA adapter, merged into the weights"
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="FOLDER",
        help="if SRC is a LoRA adapter: the folder of its base model's config.json",
    )
    parser.add_argument(
        "--split-max-size",
        type=decimal_size,
        default=0,
        metavar="SIZE",
        help="write parts of at most SIZE bytes of weights (K, M, G: powers of 1000)",
    )
    parser.add_argument(
        "--no-tokenizer", action="store_true", help="write no vocabulary: the file takes token ids, not text"
    )
    parser.add_argument(
        "--no-tokenizer-check",
        action="store_true",
        help="do not compare the file's token ids with those of the checkpoint's tokenizer",
    )
    parser.add_argument("-t", "--threads", type=positive, help="threads (default: all cores)")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be written, and write nothing"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT.gguf if it exists")
    scaling.configure(parser.add_argument_group("rope scaling", "replaces the checkpoint's own"))


def main(args: argparse.Namespace) -> None:
    """Convert the checkpoint, or show the plan. Raises what convert raises."""
    from yarn_gguf.convert.hf_to_gguf import convert, plan_files  # loads the gguf package

    options = {
        "type": args.type,
        "scaling": _scaling(args),
        "dynamic": args.dynamic,
        "imatrix": args.imatrix,
        "lora": args.lora,
        "base": args.base,
        "split_max_size": args.split_max_size,
        "tokenizer": not args.no_tokenizer,
        "check_tokenizer": not args.no_tokenizer_check,
    }
    if args.dry_run:
        _show(plan_files(args.checkpoint, **options), args.output)
        return
    with writing_progress(Console(stderr=True)) as report:
        paths = convert(
            args.checkpoint, args.output, **options, threads=args.threads, force=args.force, progress=report
        )
    for path in paths:
        print(f"{path}: {path.stat().st_size:,} bytes")


def _scaling(args: argparse.Namespace) -> scaling.RopeScaling | None:
    """Return the scaling of the options; None stands for the checkpoint's own."""
    if not scaling.is_asked_for(args):
        return None
    asked = scaling.scaling(args)
    return asked if args.original_context is None else asked.with_original_context(args.original_context)


def _show(plan: ConversionPlan, output: Path) -> None:
    """Print the type and size of every tensor, and the size of every file."""
    for path, file in zip(plan.paths(output), plan.files, strict=True):
        for each in file.tensors:
            shape = " x ".join(map(str, each.tensor.shape))
            print(f"  {each.name:<36}{shape:>20}  {each.type.name:<8}{each.size:>15,}")
        print(f"{path}: {file.size:,} bytes")
    print(f"{plan.size:,} bytes in all; nothing was written")
