"""yarn-gguf eval report: one self-contained page of what the evaluations have written with --json."""

from __future__ import annotations

import argparse
from pathlib import Path

from yarn_gguf.disk.replace import require_replaceable
from yarn_gguf.errors import YarnGGUFError, require_once
from yarn_gguf.evaluate.show.report import read_results, write_pictures, write_report

HELP = "one self-contained page, with pictures, of what evaluations have written with --json"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULTS.json", help="from --json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="REPORT.html", help="the page")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write the pictures as PNG files too")


def main(args: argparse.Namespace) -> None:
    if args.output.suffix.lower() not in (".html", ".htm"):
        raise YarnGGUFError(f"-o {args.output}: name an HTML page, FILE.html")
    require_replaceable(args.output, args.results)
    require_once([str(each.resolve()) for each in args.results], "RESULTS.json")
    results = read_results(args.results)
    write_report(results, args.output)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")
    if args.pictures:
        for path in write_pictures(results, args.pictures):
            print(path)
