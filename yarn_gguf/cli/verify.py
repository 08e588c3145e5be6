"""yarn-gguf verify: compare a file with its checkpoint: scaling, tokenizer, logits. Fails if they differ."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from yarn_gguf.cli.options.numbers import positive, positive_number
from yarn_gguf.cli.screen.progress import reading_progress
from yarn_gguf.disk.text import text_of
from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.rope.hf_config import read_config
from yarn_gguf.rope.read import read_model

if TYPE_CHECKING:
    from yarn_gguf.evaluate.logit_errors import PositionErrors
    from yarn_gguf.evaluate.verify import Verification
    from yarn_gguf.rope.compare import RopeDifference

HELP = "compare a file with its checkpoint: scaling, tokenizer, logits"

_DEFAULT_LENGTH = 1.25  # of the text, in original contexts: all of it, and a quarter beyond


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "PyTorch and transformers compute the checkpoint's logits: pip install torch transformers. "
        "The exit status is 1 if file and checkpoint differ."
    )
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
        type=positive,
        help=f"tokens to read (default: {_DEFAULT_LENGTH} times the original context)",
    )
    parser.add_argument(
        "--max-kl",
        type=positive_number,
        metavar="NATS",
        help="the largest KL divergence that passes (default: 1.5 times that of SRC in the file's own types)",
    )
    parser.add_argument(
        "--file-scaling",
        action="store_true",
        help="the file was extended on purpose: SRC is read with the file's rope scaling",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Print the differences and the verdict. Returns 1 if the file differs. Raises what verify raises."""
    from yarn_gguf.evaluate.verify import verify  # loads the native library

    count = args.tokens or int(_DEFAULT_LENGTH * read_model(args.model).original_context)
    tokens = _text(args.file, args.reference, count) if args.file else _random(args.reference, count)
    with reading_progress(Console(stderr=True)) as report:
        found = verify(
            args.model,
            args.reference,
            tokens,
            max_kl=args.max_kl,
            file_scaling=args.file_scaling,
            progress=report,
        )
    if args.json:
        print(json.dumps(asdict(found), indent=2))
    else:
        _show(found, Console(highlight=False))
    return 0 if found.passed else 1


def _show(found: Verification, console: Console) -> None:
    if found.differences:
        console.print(_differences(found.differences), markup=False, soft_wrap=True)
    if found.positions:
        console.print(_positions(found.positions))
    console.print(found.verdict, style="green" if found.passed else "red", markup=False, soft_wrap=True)


def _differences(differences: Sequence[RopeDifference]) -> str:
    lines = (
        f"{each.what}\n  {'checkpoint':<12}{each.checkpoint}\n  {'file':<12}{each.file}"
        for each in differences
    )
    return "\n".join(lines)


def _positions(positions: Sequence[PositionErrors]) -> Table:
    names = ("positions", "logit error", "KL divergence", "of the types", "same top token")
    table = Table(*names, box=None)
    for column in table.columns:
        column.justify = "right"
    for each in positions:
        expected = "-" if each.expected_kl is None else f"{each.expected_kl:.2e}"
        numbers = f"{each.logit_error:.2e}", f"{each.kl_divergence:.2e}", expected
        table.add_row(f"{each.start:,} - {each.stop:,}", *numbers, f"{each.top1_agreement:.2%}")
    return table


def _random(folder: Path, count: int) -> list[int]:
    """Return random tokens, the same ones in each run."""
    return np.random.default_rng(0).integers(0, read_config(folder).whole("vocab_size"), count).tolist()


def _text(file: Path, folder: Path, count: int) -> list[int]:
    """Return the first `count` tokens of the text in `file`, by the checkpoint's tokenizer."""
    from yarn_gguf.evaluate.reference import require_transformers

    require_transformers()
    from transformers import AutoTokenizer  # slow to import

    tokens = AutoTokenizer.from_pretrained(folder)(text_of(file.read_bytes(), file))["input_ids"]
    if len(tokens) < count:
        raise YarnGGUFError(f"{file} has {len(tokens)} tokens, and {count} are wanted: give a smaller -n")
    return tokens[:count]
