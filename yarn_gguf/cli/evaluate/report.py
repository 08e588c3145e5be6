"""yarn-gguf eval report: one self-contained page from the results that evaluations wrote with --json."""

from __future__ import annotations

import argparse
from pathlib import Path

from yarn_gguf.disk.replace import require_replaceable
from yarn_gguf.errors import YarnGGUFError, require_once
from yarn_gguf.evaluate.show.report import read_sections, write_pictures, write_report

HELP = "one self-contained page, with pictures, from the results that evaluations wrote with --json"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULTS.json", help="files from --json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="REPORT.html", help="the page")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write the pictures as PNG files too")


def main(args: argparse.Namespace) -> None:
    if args.output.suffix.lower() not in (".html", ".htm"):
        raise YarnGGUFError(f"-o {args.output}: name an HTML page, FILE.html")
    require_replaceable(args.output, args.results)
    require_once([str(each.resolve()) for each in args.results], "RESULTS.json")
    sections = read_sections(args.results)
    write_report(sections, args.output)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")
    if args.pictures:
        for path in write_pictures(sections, args.pictures, [*args.results, args.output]):
            print(path)
