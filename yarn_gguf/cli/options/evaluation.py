"""The options that the evaluations share, and the model that they load."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from yarn_gguf.cli.options.numbers import positive
from yarn_gguf.disk.fingerprint import model_files
from yarn_gguf.disk.replace import require_outputs
from yarn_gguf.errors import YarnGGUFError, require_once
from yarn_gguf.evaluate.results import Results
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
        "none; or file, for the file's own (default). Without a factor: the one that makes the context fit",
    )


def configure_model(parser: argparse.ArgumentParser) -> None:
    """Add all options but --scaling."""
    parser.add_argument("model", type=Path, metavar="MODEL.gguf", help="the GGUF file")
    parser.add_argument("--cache-type", choices=CACHE_TYPES, default="f16", help="of K and V (default f16)")
    parser.add_argument("--no-flash-attn", dest="flash_attn", action="store_false", help="plain attention")
    parser.add_argument("-t", "--threads", type=positive, help="threads (default: all cores)")
    parser.add_argument("-ngl", "--gpu-layers", type=int, default=-1, help="layers on the GPU (default: all)")
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="keep each measurement here; a second run continues"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, for eval report")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the results as CSV")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw a picture of the results")


def variants_of(args: argparse.Namespace, context: int) -> list[Variant]:
    """Return the scalings of --scaling, for texts of `context` tokens.

    Raises YarnGGUFError, RopeScalingError.
    """
    require_once(args.scaling, "--scaling")
    factor = max(1.0, context / read_model(args.model).original_context)
    return [parse_variant(text, factor) for text in args.scaling]


def results_of(args: argparse.Namespace) -> Results:
    return Results(args.results)


@contextmanager
def loaded(args: argparse.Namespace, context: int) -> Iterator[Llama]:
    """Yield the model with room for `context` tokens, unscaled: dynamic scalings need its own base."""
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
    """Raise YarnGGUFError, before anything is measured, for an output that cannot or must not be written.

    inputs: the files that are read, without the model.
    """
    given = args.json, args.csv, args.plot, getattr(args, "output", None)
    require_outputs((path for path in given if path is not None), [*model_files(args.model), *inputs])
    if args.plot:
        check_format(args.plot)
    if args.results:
        try:
            args.results.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise YarnGGUFError(f"--results {args.results}: {error.strerror}: name a folder") from error
