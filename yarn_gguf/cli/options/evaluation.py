"""What the evaluations share: the options that load a model, and how results are written."""

from __future__ import annotations

import argparse
import csv
import io
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from yarn_gguf import _version
from yarn_gguf.cli.options.numbers import positive
from yarn_gguf.disk.replace import replacing, require_replaceable
from yarn_gguf.errors import YarnGGUFError, require_once
from yarn_gguf.evaluate.results import Results
from yarn_gguf.evaluate.show.plots import picture_of
from yarn_gguf.evaluate.show.report import dump
from yarn_gguf.evaluate.show.tables import TextTable, table_of
from yarn_gguf.model_file.plot import check_format
from yarn_gguf.native.cache_types import CACHE_TYPES
from yarn_gguf.rope.names import Variant, parse_variant
from yarn_gguf.rope.read import read_model

if TYPE_CHECKING:
    from yarn_gguf.run.llama import Llama


def configure(parser: argparse.ArgumentParser) -> None:
    configure_model(parser)
    parser.add_argument(
        "--scaling",
        nargs="+",
        default=["file"],
        metavar="SCALING",
        help="METHOD[:FACTOR][,NAME=VALUE...], such as yarn:4 or by-parts:2,ramp=rotations; dynamic-METHOD; "
        "none; or file, for what the file says (default). Without a factor: what makes the context fit",
    )


def configure_model(parser: argparse.ArgumentParser) -> None:
    """All but the scalings."""
    parser.add_argument("model", type=Path, metavar="MODEL.gguf", help="the GGUF file")
    parser.add_argument("--cache-type", choices=CACHE_TYPES, default="f16", help="of K and V (default f16)")
    parser.add_argument("--no-flash-attn", dest="flash_attn", action="store_false", help="plain attention")
    parser.add_argument("-t", "--threads", type=positive, help="threads (default: all cores)")
    parser.add_argument("-ngl", "--gpu-layers", type=int, default=-1, help="layers on the GPU (default: all)")
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="keep each measurement here; a second run goes on"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, for eval report")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the results as CSV")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw a picture of them")


def variants_of(args: argparse.Namespace, context: int) -> list[Variant]:
    """Of --scaling, for texts of `context` tokens. Raises YarnGGUFError, RopeScalingError."""
    require_once(args.scaling, "--scaling")
    factor = max(1.0, context / read_model(args.model).original_context)
    return [parse_variant(text, factor) for text in args.scaling]


def results_of(args: argparse.Namespace) -> Results:
    return Results(args.results)


@contextmanager
def loaded(args: argparse.Namespace, context: int) -> Iterator[Llama]:
    """The model, with room for `context` tokens; unscaled at first, on whose base dynamic scalings build."""
    from yarn_gguf.run.llama import Llama  # loads the native library

    type_ = CACHE_TYPES[args.cache_type]
    with closing(
        Llama(
            args.model,
            rope_scaling="none",
            n_ctx=context,
            n_threads=args.threads or os.cpu_count(),
            n_threads_batch=args.threads,
            n_gpu_layers=args.gpu_layers,
            flash_attn=args.flash_attn,
            type_k=type_,
            type_v=type_,
            verbose=False,
        )
    ) as llama:
        try:
            yield llama
        except KeyboardInterrupt:
            print(f"interrupted: {_kept(args.results)}", file=sys.stderr)
            raise


def _kept(folder: Path | None) -> str:
    if folder is None:
        return "nothing is kept; with --results FOLDER, the same command goes on"
    count = len([*folder.glob("*.json")])
    are = "measurement is" if count == 1 else "measurements are"
    return f"{count} {are} kept in {folder}: the same command goes on"


def check_outputs(args: argparse.Namespace, inputs: Iterable[Path]) -> None:
    """Before anything is measured. Raises YarnGGUFError for a file that could not, or should not, be written.

    inputs: what is read, but for the model.
    """
    given = [path for path in (args.json, args.csv, args.plot) if path is not None]
    for path in given:
        require_replaceable(path, [args.model, *inputs])
    require_once(map(str, given), "--json, --csv and --plot")
    if args.plot:
        check_format(args.plot)
    if args.results:
        try:
            args.results.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise YarnGGUFError(f"--results {args.results}: {error.strerror}: name a folder") from error


def finish(args: argparse.Namespace, kind: str, values: dict[str, Any], rows: Sequence[dict]) -> None:
    """Show what was measured, and write the files that are asked for.

    values: what is true of all rows. Raises YarnGGUFError, with an older file as it was.
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
    """To standard output, numbers to the right."""
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
    with replacing(path, len(data), error=YarnGGUFError, elsewhere="name another file") as file:
        file.write(data)


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
