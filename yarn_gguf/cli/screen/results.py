"""The results of an evaluation: a table on the terminal, and the files that are asked for."""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from yarn_gguf import _version
from yarn_gguf.disk.replace import replace_file
from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.evaluate.show.plots import picture_of
from yarn_gguf.evaluate.show.report import dump
from yarn_gguf.evaluate.show.tables import TextTable, table_of
from yarn_gguf.rope.read import read_model


def finish(
    args: argparse.Namespace, kind: str, values: dict[str, Any], rows: Sequence[dict[str, Any]]
) -> None:
    """Show the results, and write the files that the options name.

    values: facts about all rows. Raises YarnGGUFError for a file that cannot be written; an older file stays.
    """
    command = shlex.join(["yarn-gguf", *sys.argv[1:]])
    facts = {"kind": kind, "command": command, "version": _version.__version__}
    result = {**facts, "model": _model(args.model), **values, "rows": list(rows)}
    show(table_of(result))
    if args.json:
        _write(args.json, dump(result))
    if args.csv:
        _write(args.csv, _csv(rows))
    if args.plot:
        _write(args.plot, picture_of(result, args.plot.suffix[1:].lower()))


def show(table: TextTable) -> None:
    """Print a table to standard output, with numbers aligned to the right."""
    first, *others = table.columns
    shown = Table(first, box=None, title=table.title)
    for column in others:
        shown.add_column(column, justify="right")
    for cells in table.rows:
        shown.add_row(*cells)
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(shown)


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    columns = [name for name, value in rows[0].items() if not isinstance(value, tuple)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _write(path: Path, data: bytes) -> None:
    replace_file(path, data, error=YarnGGUFError, elsewhere="name another file")


def _model(path: Path) -> dict[str, Any]:
    model = read_model(path)
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "architecture": model.arch,
        "context_length": model.context_length,
        "original_context": model.original_context,
        "rope_theta": model.rope_theta,
        "rotary_dimensions": model.dim,
    }
