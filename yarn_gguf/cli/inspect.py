"""yarn-gguf inspect: show what a model is, and the rope scaling that it asks for, dimension by dimension."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from yarn_gguf.cli.screen.terminal import printable
from yarn_gguf.disk.fingerprint import model_files
from yarn_gguf.disk.replace import require_replaceable
from yarn_gguf.model_file.facts import ModelFacts
from yarn_gguf.model_file.inspect import Report, inspect
from yarn_gguf.model_file.plot import check_format, plot_report
from yarn_gguf.rope.layers import FULL, NO_ATTENTION, WINDOW, LayerKind
from yarn_gguf.rope.names import describe

HELP = "show what a model is, and the rope scaling that it asks for"

_LABEL = 21  # columns
_WITH = {FULL: "full attention", WINDOW: "a sliding window", NO_ATTENTION: "no attention"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "model", type=Path, metavar="FILE", help="the GGUF file, or the folder of a checkpoint (config.json)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the dimensions to FILE.png")


def main(args: argparse.Namespace) -> None:
    """Run the command. Raises YarnGGUFError, OSError."""
    if args.plot:
        check_format(args.plot)
        require_replaceable(args.plot, model_files(args.model))
    report = inspect(args.model)
    if args.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        _show(report, Console(highlight=False))
    if args.plot:
        plot_report(report, args.plot)


def _show(report: Report, console: Console) -> None:
    kind = "a GGUF file" if report.config is None else "a checkpoint"
    console.print(f"{report.path}: {kind}", markup=False, soft_wrap=True)
    for name, value in (*_about(report), *_rope(report)):
        _print(console, name, value)
    for line in report.unpatched:
        _print(console, "unpatched llama.cpp", line)
    for line in report.warnings:
        _print(console, "warning", line, style="yellow")
    if report.dimensions:
        console.print(_table(report))


def _print(console: Console, name: str, value: str, style: str | None = None) -> None:
    """Print a fact. On a terminal, its further lines are indented."""
    label, value = f"  {name:<{_LABEL}}", " ".join(printable(value).split())
    if console.is_terminal:
        indent = " " * len(label)
        value = textwrap.fill(
            value,
            max(console.width, 2 * len(label)),
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ).lstrip()
    console.print(label + value, style=style, markup=False, soft_wrap=True)


def _about(report: Report) -> Iterator[tuple[str, str]]:
    """Yield what the model is."""
    facts = report.facts
    parameters = "" if facts.parameters is None else f", {_count(facts.parameters)} parameters"
    yield "model", f"{facts.name or 'no name'}, {report.arch}{parameters}"
    yield "weights", _weights(facts)
    if facts.missing:
        names = ", ".join(facts.missing[:3]) + (", …" if len(facts.missing) > 3 else "")
        yield "missing", f"{len(facts.missing)} of {facts.files + len(facts.missing)} files: {names}"
    tokens = "" if facts.vocabulary is None else f", {facts.vocabulary:,} tokens"
    template = "a chat template" if facts.has_chat_template else "no chat template"
    yield "tokenizer", f"{facts.tokenizer or 'none'}{tokens}; {template}"
    yield "license", facts.license or "not stated"


def _weights(facts: ModelFacts) -> str:
    texts = [facts.type or "no weights"]
    if facts.bits_per_weight is not None:
        texts.append(f"{facts.bits_per_weight:.2f} bits per weight")
    texts.append(_bytes(facts.bytes) + (f" in {facts.files} files" if facts.files > 1 else ""))
    return ", ".join(texts)


def _rope(report: Report) -> Iterator[tuple[str, str]]:
    """Yield what the rotary embedding is, and how it is scaled."""
    for name, values in (report.config or {}).items():
        yield "config.json", f"{name} {_section(values)}"
    yield "rotary embedding", f"{report.rotary_dimensions} dimensions, base {report.rope_theta:g}"
    yield "original context", f"{report.original_context:,} tokens"
    yield "stated context", f"{report.context_length:,} tokens"
    if report.scaling is None:
        yield "rope scaling", f"unsound: {report.problem}"
        return
    yield "usable context", f"{report.usable_context:,} tokens"
    yield "rope scaling", describe(report.scaling)
    yield "temperature", f"{report.temperature:.6g}"
    if report.dynamic is not None:
        factor = report.dynamic.scaling.factor
        yield "dynamic scaling", f"{report.dynamic.policy}: the factor follows the text, from {factor:g} on"
    if not report.layers:
        yield "layers", f"which kinds there are is not known for {report.arch}"
    is_scaled = report.scaling.method != "none" or any(
        each.treatment != "extrapolated" for each in report.dimensions
    )
    for number, kind in enumerate(report.layers):
        yield "layers" if number == 0 else "", _layers(kind, is_scaled)


def _section(values: Any) -> str:
    """Return a section of config.json as JSON, with the length of a list in place of its numbers."""
    if isinstance(values, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {_section(each)}" for name, each in values.items()) + "}"
    return f"[{len(values)} numbers]" if isinstance(values, list) else json.dumps(values)


def _layers(kind: LayerKind, is_scaled: bool) -> str:
    """Describe layers of one kind. is_scaled: whether the model has a scaling at all."""
    text = f"{kind.layers} with {_WITH.get(kind.name, kind.name)}"
    if kind.window is not None:
        text += f" of {kind.window:,} tokens"
    if kind.name == NO_ATTENTION:
        return text
    if kind.rope_theta is None:
        return f"{text}, no rotary embedding"
    if kind.name == WINDOW:
        text += f", base {kind.rope_theta:g}"
    return text + (": scaled" if kind.scaled else ": not scaled") * is_scaled


def _count(number: int) -> str:
    """Return a number of parameters with three digits, such as "135 M" or "8.03 B"."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _bytes(number: int) -> str:
    """Return a size on disk, in powers of 1000, as convert's --split-max-size takes it."""
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} bytes"


def _table(report: Report) -> Table:
    table = Table("index", "wavelength", "scaled", "interpolation", "treatment", box=None, pad_edge=True)
    for column in table.columns[:4]:
        column.justify = "right"
    for each in report.dimensions:
        numbers = f"{each.wavelength:,.1f}", f"{each.scaled_wavelength:,.1f}", f"{each.interpolation:.3f}"
        table.add_row(str(each.index), *numbers, each.treatment)
    return table
