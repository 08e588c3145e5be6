"""The paper's tables and figures for a model, as in docs/results.md.

    python benchmarks/results.py measure MODEL.gguf RESULTS --texts FOLDER/*.txt --requests FOLDER [--jobs 4]
    python benchmarks/results.py document RESULTS docs/results.md

measure runs yarn-gguf eval, and keeps all measurements in the folder RESULTS; a second run continues.
--jobs: the number of evaluations that run at once, each with one scaling. document writes tables and pictures
into a page, between <!-- NAME --> and <!-- /NAME -->, and writes RESULTS/report.html. benchmarks/texts.py and
task_requests.py provide texts and requests. On two CPU cores this takes days, on a data-centre GPU minutes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from yarn_gguf.evaluate.show.plots import picture_of
from yarn_gguf.evaluate.show.report import read_sections, write_report

METHODS = ("linear", "ntk", "by-parts", "yarn")


@dataclass(frozen=True)
class Evaluation:
    """An evaluation. arguments: those of yarn-gguf eval, after the model."""

    name: str
    kind: str
    arguments: tuple[str, ...]
    scalings: tuple[str, ...]


def evaluations(texts: Sequence[str], requests: Path) -> list[Evaluation]:
    positions = ("--edges", *map(str, [0, 2048, 4096, 8192, 12288, 16384, 20480, 24576, 28672, 32768]))
    static = [f"{method}:4" for method in METHODS]
    dynamic = [f"dynamic-{method}" for method in METHODS]
    sweep = ("--sweep", "attention_factor=1,1.05,1.1,1.1386,1.2,1.25,1.3")
    windows = ("--windows", "2048", "4096", "8192", "12288", "16384")
    lengths = ("--lengths", *map(str, [2048, 4096, 8192, 12288, 16384, 24576, 32768]))
    return [
        Evaluation(
            "positions",
            "perplexity",
            ("-f", *texts, "-c", "32768", *positions),
            ("none", *static, "yarn:2", *dynamic),
        ),
        Evaluation(
            "windows",
            "perplexity",
            ("-f", texts[-1], "-c", "49152", *windows, "--stride", "256", "--parallel", "4"),
            ("none", *METHODS, "dynamic-yarn"),
        ),
        Evaluation(
            "temperature",
            "perplexity",
            ("-f", *texts, "-c", "32768", "--edges", "0", "8192", "16384", "32768", *sweep),
            ("yarn:4",),
        ),
        Evaluation(
            "passkey",
            "passkey",
            (*lengths, "--depths", "11", "--trials", "2"),
            ("none", *METHODS, "dynamic-yarn", "dynamic-yarn,policy=request"),
        ),
        *(
            Evaluation(
                f"tasks-{task}",
                "tasks",
                ("--requests", str(requests / task), "--limit", "1200"),
                ("none", "yarn:2", "yarn:4", "dynamic-yarn"),
            )
            for task in ("arc_challenge", "hellaswag")
        ),
    ]


def command(model: Path, results: Path, each: Evaluation, scalings: Sequence[str]) -> list[str]:
    kept = ["--results", str(results / "kept")]
    arguments = ["eval", each.kind, str(model), *each.arguments, "--scaling", *scalings, *kept]
    return [sys.executable, "-m", "yarn_gguf", *arguments]


def measure(args: argparse.Namespace) -> None:
    """Run jobs with one scaling each, then each evaluation with all scalings, from the kept measurements.

    The unscaled ones run first: the others are the same where a text needs no scaling.
    """
    args.results.mkdir(parents=True, exist_ok=True)
    chosen = [
        each for each in evaluations(args.texts, args.requests) if each.name in (args.only or each.name)
    ]

    def run(job: tuple[Evaluation, Sequence[str]]) -> None:
        subprocess.run(command(args.model, args.results, *job), check=True, stdout=subprocess.DEVNULL)

    if args.jobs > 1:
        jobs = [(each, [scaling]) for each in chosen for scaling in each.scalings]
        with ThreadPoolExecutor(args.jobs) as pool:
            for unscaled in (True, False):
                list(pool.map(run, [job for job in jobs if (job[1] == ["none"]) == unscaled]))
    for each in chosen:
        print(each.name, flush=True)
        whole = command(args.model, args.results, each, each.scalings)
        subprocess.run([*whole, "--json", str(args.results / f"{each.name}.json")], check=True)


def document(args: argparse.Namespace) -> None:
    paths = sorted(args.results.glob("*.json"))
    sections = read_sections(paths)
    write_report(sections, args.results / "report.html")
    page = args.page.read_text(encoding="utf-8")
    pictures = args.page.with_suffix("")
    pictures.mkdir(exist_ok=True)
    for path, section in zip(paths, sections, strict=True):
        picture = pictures / f"{path.stem}.png"
        picture.write_bytes(picture_of(section.result, "png"))
        link = f"![{section.result['kind']}]({picture.relative_to(args.page.parent)})"
        shown = f"{link}\n\n{section.table.markdown()}"
        start, end = f"<!-- {path.stem} -->", f"<!-- /{path.stem} -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(page):
            raise SystemExit(f"{args.page} has no place for {path.stem}: {start} and {end}")
        page = pattern.sub(lambda _, shown=shown, a=start, b=end: f"{a}\n{shown}\n{b}", page)
    args.page.write_text(page, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("model", type=Path)
    measuring.add_argument("results", type=Path)
    measuring.add_argument("--texts", nargs="+", required=True)
    measuring.add_argument("--requests", type=Path, required=True)
    measuring.add_argument("--only", nargs="+", metavar="NAME")
    measuring.add_argument("--jobs", type=int, default=1)
    measuring.set_defaults(main=measure)
    documenting = commands.add_parser("document")
    documenting.add_argument("results", type=Path)
    documenting.add_argument("page", type=Path)
    documenting.set_defaults(main=document)
    args = parser.parse_args()
    args.main(args)


if __name__ == "__main__":
    main()
