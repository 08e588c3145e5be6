"""yarn-gguf inspect: show the rope scaling that a model asks for, dimension by dimension."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from yarn_gguf.disk.fingerprint import model_files
from yarn_gguf.disk.replace import require_replaceable
from yarn_gguf.model_file.inspect import Report, inspect_file
from yarn_gguf.model_file.plot import check_format, plot_report
from yarn_gguf.rope.names import changed_values

HELP = "show the rope scaling that a model asks for, dimension by dimension"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", type=Path, metavar="FILE", help="the GGUF file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the dimensions to FILE.png")


def main(args: argparse.Namespace) -> None:
    """Run the command. Raises YarnGGUFError, OSError."""
    if args.plot:
        check_format(args.plot)
        require_replaceable(args.plot, model_files(args.model))
    report = inspect_file(args.model)
    if args.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        _show(report, Console(highlight=False))
    if args.plot:
        plot_report(report, args.plot)


def _show(report: Report, console: Console) -> None:
    console.print(f"{report.path}: {report.arch}", markup=False, soft_wrap=True)
    for name, value in _facts(report):
        console.print(f"  {name:<21}{value}", markup=False, soft_wrap=True)
    for line in report.unpatched:
        console.print(f"  {'unpatched llama.cpp':<21}{line}", markup=False, soft_wrap=True)
    for line in report.warnings:
        console.print(f"  {'warning':<21}{line}", style="yellow", markup=False, soft_wrap=True)
    if report.dimensions:
        console.print(_table(report))


def _facts(report: Report) -> list[tuple[str, str]]:
    facts = [
        ("rotary embedding", f"{report.rotary_dimensions} dimensions, base {report.rope_theta:g}"),
        ("original context", f"{report.original_context:,} tokens"),
        ("stated context", f"{report.context_length:,} tokens"),
    ]
    if report.scaling is None:
        return [*facts, ("rope scaling", f"unsound: {report.problem}")]
    _, *others = changed_values(report.scaling).items()  # without the method
    values = "".join(f", {name} {value}" for name, value in others)
    facts += [
        ("usable context", f"{report.usable_context:,} tokens"),
        ("rope scaling", report.scaling.method + values),
        ("temperature", f"{report.temperature:.6g}"),
    ]
    if report.dynamic is not None:
        follows = (
            f"{report.dynamic.policy}: the factor follows the text, from {report.dynamic.scaling.factor:g} on"
        )
        facts.append(("dynamic scaling", follows))
    return facts


def _table(report: Report) -> Table:
    table = Table("index", "wavelength", "scaled", "interpolation", "treatment", box=None, pad_edge=True)
    for column in table.columns[:4]:
        column.justify = "right"
    for each in report.dimensions:
        numbers = f"{each.wavelength:,.1f}", f"{each.scaled_wavelength:,.1f}", f"{each.interpolation:.3f}"
        table.add_row(str(each.index), *numbers, each.treatment)
    return table
