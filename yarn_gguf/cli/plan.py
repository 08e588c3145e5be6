"""yarn-gguf plan: plan the memory of a context, and check whether the file's rope scaling suits it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from yarn_gguf.cli.options.numbers import positive
from yarn_gguf.cli.options.sizes import binary_size
from yarn_gguf.disk.sizes import lack_text, size_text
from yarn_gguf.run.arguments import PADDING

if TYPE_CHECKING:
    from yarn_gguf.model_file.memory_plan import Layout, MemoryPlan, MemoryUse

HELP = "plan the memory of a context, and check whether the file's rope scaling suits it"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", type=Path, metavar="FILE", help="the GGUF file")
    parser.add_argument("-c", "--context", type=positive, required=True, help="tokens of each text")
    parser.add_argument("--parallel", type=int, default=1, help="texts at the same time (default 1)")
    parser.add_argument(
        "--memory",
        type=binary_size,
        metavar="SIZE",
        help="the GPU's memory, such as 24G (default: this machine's)",
    )
    parser.add_argument("--ram", type=binary_size, metavar="SIZE", help="RAM (default: this machine's)")
    parser.add_argument(
        "--reserve", type=binary_size, metavar="SIZE", help="memory to leave free of each (default 1G)"
    )
    parser.add_argument(
        "--kv-type",
        nargs="+",
        metavar="TYPE",
        help="types of the KV cache to choose from, best first (default: f16 q8_0 q4_0)",
    )
    parser.add_argument(
        "-ngl",
        "--gpu-layers",
        type=int,
        help="layers on the GPU (default: as many as fit); 0: there is no GPU, and --memory is the RAM",
    )
    parser.add_argument("--ubatch", type=int, default=512, help="tokens computed at once (default 512)")
    parser.add_argument("--no-flash-attn", dest="flash_attn", action="store_false", help="plain attention")
    parser.add_argument("--swa-full", action="store_true", help="sliding-window layers cache the whole text")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> None:
    """Run the command. Raises YarnGGUFError, OSError."""
    from yarn_gguf.model_file.plan import DEFAULT_KV_TYPES, RESERVE, plan  # loads the native library

    made = plan(
        args.model,
        args.context,
        memory=args.memory,
        ram=args.ram,
        reserve=RESERVE if args.reserve is None else args.reserve,
        kv_types=args.kv_type or DEFAULT_KV_TYPES,
        parallel=args.parallel,
        gpu_layers=args.gpu_layers,
        flash_attn=args.flash_attn,
        ubatch=args.ubatch,
        swa_full=args.swa_full,
    )
    if args.json:
        print(json.dumps(made.as_json(), indent=2))
    else:
        _show(made, Console(highlight=False))


def _show(plan: MemoryPlan, console: Console) -> None:
    console.print(f"{plan.path}: {plan.arch}", markup=False, soft_wrap=True)
    _print(console, _memory(plan))
    console.print(_table(plan))
    _print(console, _answer(plan))
    _print(console, _scaling(plan))
    _print(console, [("warning", line) for line in plan.warnings], style="yellow")


def _print(console: Console, facts: list[tuple[str, str]], style: str | None = None) -> None:
    for name, value in facts:
        console.print(f"  {name:<14}{value}", style=style, markup=False, soft_wrap=True)


def _memory(plan: MemoryPlan) -> list[tuple[str, str]]:
    texts = f"{plan.parallel} texts of " if plan.parallel > 1 else ""
    gpu = f"{size_text(plan.gpu)} on the GPU, " if plan.gpu else ""
    free = f"{size_text(plan.reserve)} {'of each ' if plan.gpu else ''}is left free"
    return [
        ("context", f"{texts}{plan.context:,} tokens"),
        ("memory", f"{gpu}{size_text(plan.ram)} of RAM; {free}"),
    ]


def _table(plan: MemoryPlan) -> Table:
    """Return the sizes of each layout, in GiB."""
    places = ("GPU", "RAM", "-ngl") if plan.gpu else ("RAM",)
    table = Table(
        "GiB", "weights", "cache", "compute", *places, "", "largest context", box=None, pad_edge=True
    )
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for each in plan.layouts:
        sizes = [each.weights.total, sum(cache.use.total for cache in each.caches), each.compute.total]
        sizes += [each.use.gpu, each.use.ram] if plan.gpu else [each.use.ram]
        cells = [f"{size / 2**30:.2f}" for size in sizes]
        layers = [f"{each.gpu_layers}/{plan.layers}"] if plan.gpu else []
        fits = "fits" if each.fits else "too much"
        table.add_row(each.kv_type, *cells, *layers, fits, _largest_context(plan, each))
    return table


def _largest_context(plan: MemoryPlan, layout: Layout) -> str:
    from yarn_gguf.model_file.layout import LONGEST

    is_end_of_search = (layout.largest_context + PADDING) * plan.parallel > LONGEST
    return f"{layout.largest_context:,}{' or more' if is_end_of_search else ''}"


def _answer(plan: MemoryPlan) -> list[tuple[str, str]]:
    refused = [(f"not {name}", reason) for name, reason in plan.refused.items()]
    best = plan.chosen
    if best is None:
        least = min(plan.layouts, key=lambda each: each.missing.total)
        lacks = f"nothing fits: even with {least.kv_type}, {_places(least.missing)} are missing"
        lacks += "; -ngl 0 plans without a GPU" if least.missing.gpu else ""
        return [*refused, *_caches(least), ("use", lacks)]
    all_layers = " (all layers)" if best.gpu_layers == plan.layers else ""
    split = f"-ngl {best.gpu_layers}{all_layers}, " if plan.gpu else ""
    keys = f", K in {plan.keys} for dynamic scaling exact" if plan.keys else ""
    lines = [*refused, *_caches(best), ("use", f"{split}KV cache of type {best.kv_type}{keys}")]
    if plan.arguments is not None:
        arguments = ", ".join(f"{name}={value!r}" for name, value in plan.arguments.items())
        lines.append(("in Python", f"Llama({str(plan.path)!r}, {arguments})"))
    return lines


def _places(use: MemoryUse) -> str:
    places = {"on the GPU": use.gpu, "of RAM": use.ram}
    return " and ".join(f"{lack_text(size)} {place}" for place, size in places.items() if size)


def _caches(layout: Layout) -> list[tuple[str, str]]:
    lines = []
    for each in layout.caches:
        unit = "states" if each.kind == "recurrent states" else "tokens"
        of = f"{each.layers} layers of {each.cells:,} {unit}, " if each.layers else ""
        lines.append((f"{layout.kv_type} cache", f"{each.kind}: {of}{size_text(each.use.total)}"))
    return lines


def _scaling(plan: MemoryPlan) -> list[tuple[str, str]]:
    judged = plan.scaling
    lines = [("rope scaling", f"{judged.verdict}: {judged.reason}")]
    if judged.command:
        lines.append(("better" if judged.verdict == "better dynamic" else "mend it by", judged.command))
    return lines
