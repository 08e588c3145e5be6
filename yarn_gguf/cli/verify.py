"""yarn-gguf verify: compare a file with its checkpoint, position by position."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from yarn_gguf.cli.screen.progress import reading_progress
from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.rope.hf_config import read_config
from yarn_gguf.rope.read import read_model

HELP = "compare a file with its checkpoint, position by position"

_DEFAULT_LENGTH = 1.25  # of the text, in original contexts: all of it, and a quarter beyond


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="OUT.gguf", help="the GGUF file")
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="SRC", help="the folder of the checkpoint"
    )
    parser.add_argument(
        "-f", "--file", type=Path, metavar="FILE", help="a text to read (default: random tokens)"
    )
    parser.add_argument(
        "-n",
        "--tokens",
        type=int,
        help=f"tokens to read (default: {_DEFAULT_LENGTH} times the original context)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> None:
    """Print the differences by position. Raises what verify raises."""
    from yarn_gguf.evaluate.verify import verify

    count = args.tokens or int(_DEFAULT_LENGTH * read_model(args.model).original_context)
    tokens = _text(args.file, args.reference, count) if args.file else _random(args.reference, count)
    with reading_progress(Console(stderr=True)) as report:
        buckets = verify(args.model, args.reference, tokens, report)
    if args.json:
        print(json.dumps([asdict(each) for each in buckets], indent=2))
        return
    table = Table("positions", "logit error", "KL divergence", "same top token", box=None)
    for column in table.columns:
        column.justify = "right"
    for each in buckets:
        numbers = f"{each.logit_error:.2e}", f"{each.kl_divergence:.2e}", f"{each.top1_agreement:.2%}"
        table.add_row(f"{each.start:,} - {each.stop:,}", *numbers)
    Console(highlight=False).print(table)


def _random(folder: Path, count: int) -> list[int]:
    """Return random tokens, the same ones in each run."""
    return np.random.default_rng(0).integers(0, read_config(folder).whole("vocab_size"), count).tolist()


def _text(file: Path, folder: Path, count: int) -> list[int]:
    """Return the first `count` tokens of the text in `file`, by the checkpoint's tokenizer."""
    from transformers import AutoTokenizer  # slow to import

    tokens = AutoTokenizer.from_pretrained(folder)(file.read_text(encoding="utf-8"))["input_ids"]
    if len(tokens) < count:
        raise YarnGGUFError(f"{file} has {len(tokens)} tokens, and {count} are wanted: give a smaller -n")
    return tokens[:count]
