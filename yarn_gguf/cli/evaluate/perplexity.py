"""yarn-gguf eval perplexity: how well a model predicts texts, by position, under any rope scalings."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from yarn_gguf.cli.options import evaluation as common
from yarn_gguf.cli.options.numbers import positive
from yarn_gguf.cli.screen.progress import labelled_progress
from yarn_gguf.cli.screen.results import finish
from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.evaluate.reading.documents import Document, read_documents
from yarn_gguf.evaluate.reading.losses import window_ends
from yarn_gguf.evaluate.statistics.positions import PositionRange, position_ranges
from yarn_gguf.evaluate.sweep import Sweep, parse_sweep
from yarn_gguf.rope.read import read_model

if TYPE_CHECKING:
    import numpy as np

HELP = "how well a model predicts texts, by position, under any rope scalings"


def configure(parser: argparse.ArgumentParser) -> None:
    common.configure(parser)
    parser.add_argument("-f", "--file", type=Path, nargs="+", required=True, metavar="TEXT", help="the texts")
    parser.add_argument("-c", "--context", type=_context, required=True, help="tokens to read from each text")
    parser.add_argument(
        "--edges",
        type=int,
        nargs="+",
        help="positions that divide the table (default: quarters of the original context, or of --context if "
        "it is shorter)",
    )
    parser.add_argument(
        "--windows",
        type=positive,
        nargs="+",
        metavar="TOKENS",
        help="instead of one pass: sliding windows, which move by --stride, each read from an empty cache",
    )
    parser.add_argument("--stride", type=positive, default=256, help="step of --windows (default 256)")
    parser.add_argument(
        "--parallel",
        type=positive,
        default=1,
        help="windows read at once (default 1); a dynamic scaling's s then follows each in shorter steps",
    )
    parser.add_argument(
        "--sweep",
        metavar="NAME=VALUE,VALUE...",
        help="measure each scaling with each of these values, such as attention_factor=1,1.05,1.1",
    )


def main(args: argparse.Namespace) -> None:
    sweep = parse_sweep(args.sweep) if args.sweep else Sweep()
    args.scaling = sweep.names(args.scaling)
    _check(args)
    documents = read_documents(args.model, args.file, args.context)
    measure = _by_windows if args.windows else _by_position
    rows = [row | sweep.fields(row["scaling"]) for row in measure(args, documents)]
    texts = [{"name": each.name, "tokens": len(each.tokens)} for each in documents]
    finish(args, "perplexity", {"texts": texts}, rows)


def _context(text: str) -> int:
    value = positive(text)
    if value == 1:
        raise argparse.ArgumentTypeError("must be 2 or more: the first token is not predicted")
    return value


def _check(args: argparse.Namespace) -> None:
    """Raise YarnGGUFError, before anything is measured, for options that contradict each other."""
    common.check_outputs(args, args.file)
    if args.edges:
        _check_edges(args.edges, args.context)
    if args.edges and args.windows:
        raise YarnGGUFError("--edges divide the positions of one pass: leave them out with --windows")
    for window in args.windows or []:
        window_ends(args.context, window, args.stride)


def _check_edges(edges: Sequence[int], context: int) -> None:
    are_ascending = all(low < high for low, high in itertools.pairwise(edges))
    if len(edges) < 2 or not are_ascending or not 0 <= edges[0] < context - 1:
        raise YarnGGUFError(
            f"--edges {' '.join(map(str, edges))}: give two positions or more in ascending order, the first "
            f"from 0 to {context - 2}: --context {context} gives losses at {context - 1} positions"
        )


def _by_position(args: argparse.Namespace, documents: list[Document]) -> Iterator[dict[str, Any]]:
    from yarn_gguf.evaluate.compare import compare_losses

    edges = args.edges or _quarters(read_model(args.model).original_context, args.context)
    with common.loaded(args, args.context) as llama, labelled_progress(Console(stderr=True)) as label:
        variants = common.variants_of(args, args.context)
        losses = compare_losses(llama, variants, documents, common.results_of(args), label)
    for name, found, change in _compared(losses, edges):
        place = f"{found.start:,} - {found.stop:,}"
        yield {"scaling": name, "positions": place, "whole": False, **_values(found, change)}
    if len(edges) > 2:
        for name, found, change in _compared(losses, [edges[0], edges[-1]]):
            yield {"scaling": name, "positions": "all", "whole": True, **_values(found, change)}


def _by_windows(args: argparse.Namespace, documents: list[Document]) -> Iterator[dict[str, Any]]:
    from yarn_gguf.evaluate.compare import compare_windows

    with common.loaded(args, 512) as llama, labelled_progress(Console(stderr=True), "windows") as label:
        for window in args.windows:
            losses = compare_windows(
                llama,
                common.variants_of(args, window),
                documents,
                common.results_of(args),
                label,
                window=window,
                stride=args.stride,
                parallel=args.parallel,
            )
            for name, found, change in _compared(losses, [0, args.context]):
                yield {"scaling": name, "window": f"{window:,}", **_values(found, change)}


def _quarters(original_context: int, context: int) -> list[int]:
    """Return the edges of quarters of the original context, or of a shorter `context`, to the last loss."""
    step = math.ceil(min(original_context, context) / 4)
    return [*range(0, context - 1, step), context - 1]


def _compared(
    losses: dict[str, list[np.ndarray]], edges: Sequence[int]
) -> Iterator[tuple[str, PositionRange, PositionRange]]:
    """Yield each scaling's name, its losses in each range, and their paired differences to the first."""
    first = next(iter(losses.values()))
    for name, each in losses.items():
        changes = [mine - theirs for mine, theirs in zip(each, first, strict=True)]
        pairs = zip(position_ranges(each, edges), position_ranges(changes, edges), strict=True)
        for found, change in pairs:
            yield name, found, change


def _values(found: PositionRange, change: PositionRange) -> dict[str, Any]:
    """Return the fields of a row: the perplexity with its interval, and its change from the first scaling.

    change: a ratio less 1. losses: one for each text.
    """
    low, high = found.interval
    change_low, change_high = change.interval
    return {
        "start": found.start,
        "stop": found.stop,
        "loss": found.loss,
        "losses": found.losses,
        "error": found.estimate.standard_error,
        "perplexity": found.perplexity,
        "low": low,
        "high": high,
        "change": change.perplexity - 1,
        "change_low": change_low - 1,
        "change_high": change_high - 1,
    }
