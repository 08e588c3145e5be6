"""yarn-gguf eval tasks: multiple choice and other short tasks, under any rope scalings.

The questions come from files (--requests: JSON lines in the format of OLMES), or from lm-evaluation-harness
(--tasks: needs pip install "lm-eval>=0.4.13", and the tasks' data).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from yarn_gguf.cli.options import evaluation as common
from yarn_gguf.cli.options.numbers import positive
from yarn_gguf.cli.screen.progress import labelled_progress
from yarn_gguf.cli.screen.results import finish
from yarn_gguf.errors import YarnGGUFError
from yarn_gguf.rope.names import Variant
from yarn_gguf.rope.scaling import RopeScaling

HELP = "short tasks such as ARC and HellaSwag, under any rope scalings"


def configure(parser: argparse.ArgumentParser) -> None:
    common.configure(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--requests", type=Path, metavar="PATH", help="requests: a file or a folder")
    source.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="tasks of lm-evaluation-harness, by name (arc_challenge hellaswag mmlu truthfulqa_mc2 ...) or "
        "by the file that describes them",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        help="questions of each task: a random draw from --requests, the first ones of --tasks",
    )
    parser.add_argument(
        "--fewshot",
        type=_not_negative,
        help="for --tasks: examples before each question (default: the paper's for arc_challenge, hellaswag "
        "and mmlu, else the task's own); tasks made for no examples, such as TruthfulQA, have none",
    )
    parser.add_argument(
        "-c",
        "--context",
        type=positive,
        default=4096,
        help="for --tasks: tokens (default 4096); a scaling without a factor makes them fit",
    )


def main(args: argparse.Namespace) -> None:
    common.check_outputs(args, _inputs(args))
    rows = _from_requests(args) if args.requests else _from_harness(args)
    finish(args, "tasks", {}, rows)


def _not_negative(text: str) -> int:
    return 0 if text == "0" else positive(text)


def _inputs(args: argparse.Namespace) -> list[Path]:
    """Return the files that are read, including those in folders."""
    given = [args.requests] if args.requests else [Path(name) for name in args.tasks]
    return [file for path in given for file in (path, *path.rglob("*"))]


def _variants(args: argparse.Namespace) -> list[Variant]:
    """Return the scalings. Raises YarnGGUFError for a method without a factor if no extension is needed."""
    variants = common.variants_of(args, args.context)
    for each in variants:
        if each.scaling == RopeScaling() and each.name != "none":
            raise YarnGGUFError(
                f"--scaling {each.name}: {args.context:,} tokens need no scaling: name a factor (yarn:2)"
            )
    return variants


def _from_requests(args: argparse.Namespace) -> list[dict[str, Any]]:
    from yarn_gguf.evaluate.requests import read_tasks
    from yarn_gguf.evaluate.tasks import compare_requests, summary

    tasks, variants = read_tasks(args.requests, args.limit), _variants(args)
    with common.loaded(args, 512) as llama, labelled_progress(Console(stderr=True), "questions") as label:
        return list(summary(compare_requests(llama, variants, tasks, common.results_of(args), label)))


def _from_harness(args: argparse.Namespace) -> list[dict[str, Any]]:
    from yarn_gguf.evaluate.harness import compare_tasks
    from yarn_gguf.evaluate.tasks import summary

    variants, results = _variants(args), common.results_of(args)
    with common.loaded(args, args.context) as llama:
        return list(summary(compare_tasks(llama, variants, args.tasks, args.fewshot, args.limit, results)))
