"""yarn-gguf eval perplexity: how well a model predicts texts, by position, under any rope scalings."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from yarn_gguf.cli.evaluate import common
from yarn_gguf.cli.progress import labelled_progress
from yarn_gguf.evaluate.documents import Document, read_documents
from yarn_gguf.gguf_rope import read_model

if TYPE_CHECKING:
    from yarn_gguf.evaluate.perplexity import Bucket

HELP = "how well a model predicts texts, by position, under any rope scalings"


def configure(parser: argparse.ArgumentParser) -> None:
    common.configure(parser)
    parser.add_argument("-f", "--file", type=Path, nargs="+", required=True, metavar="TEXT", help="the texts")
    parser.add_argument("-c", "--context", type=int, required=True, help="tokens that are read of each text")
    parser.add_argument(
        "--edges",
        type=int,
        nargs="+",
        help="positions that divide the table (default: quarters of the original context)",
    )
    parser.add_argument(
        "--windows",
        type=int,
        nargs="+",
        metavar="TOKENS",
        help="instead of one pass: windows of so many tokens, which move by --stride, each read anew",
    )
    parser.add_argument("--stride", type=int, default=256, help="of --windows (default 256)")
    parser.add_argument("--parallel", type=int, default=1, help="windows that are read at once (default 1)")


def main(args: argparse.Namespace) -> None:
    documents = read_documents(args.model, args.file, args.context)
    measure = _by_windows if args.windows else _by_position
    rows = list(measure(args, documents))
    common.show(_table(rows))
    texts = [{"name": each.name, "tokens": len(each.tokens)} for each in documents]
    common.write_results(args, "perplexity", {"texts": texts}, rows)


def _by_position(args: argparse.Namespace, documents: list[Document]) -> Iterator[dict[str, Any]]:
    from yarn_gguf.evaluate.compare import compare_losses
    from yarn_gguf.evaluate.perplexity import buckets

    edges = args.edges or _quarters(read_model(args.model).original_context, args.context)
    with common.loaded(args, args.context) as llama, labelled_progress(Console(stderr=True)) as label:
        variants = common.variants_of(args, args.context)
        losses = compare_losses(llama, variants, documents, common.results_of(args), label)
    for name, each in losses.items():
        for bucket in buckets(each, edges):
            yield {"scaling": name, "positions": f"{bucket.start:,} - {bucket.stop:,}", **_values(bucket)}


def _by_windows(args: argparse.Namespace, documents: list[Document]) -> Iterator[dict[str, Any]]:
    from yarn_gguf.evaluate.compare import compare_windows
    from yarn_gguf.evaluate.perplexity import buckets

    with common.loaded(args, 512) as llama, labelled_progress(Console(stderr=True)) as label:
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
            for name, each in losses.items():
                (bucket,) = buckets(each, [0, args.context])
                yield {"scaling": name, "window": f"{window:,}", **_values(bucket)}


def _quarters(original_context: int, context: int) -> list[int]:
    step = max(1, original_context // 4)
    return [*range(0, context, step), context]


def _values(bucket: Bucket) -> dict[str, Any]:
    low, high = bucket.interval
    return {
        "start": bucket.start,
        "stop": bucket.stop,
        "loss": bucket.loss,
        "error": bucket.error,
        "perplexity": bucket.perplexity,
        "low": low,
        "high": high,
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    """A row for each position or window, a column for each scaling."""
    by = "window" if "window" in rows[0] else "positions"
    scalings = list(dict.fromkeys(row["scaling"] for row in rows))
    cells = {(row[by], row["scaling"]): row for row in rows}
    table = Table(by, *scalings, box=None, title="perplexity, with its 95% interval")
    for place in dict.fromkeys(row[by] for row in rows):
        found = (cells[place, scaling] for scaling in scalings)
        table.add_row(place, *(f"{c['perplexity']:.2f} ({c['low']:.2f} - {c['high']:.2f})" for c in found))
    return table
