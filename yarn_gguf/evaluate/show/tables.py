"""The results of evaluations as tables of text: for the terminal, for Markdown, for the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[dict[str, Any]]
_MAX_COLUMNS = 6  # scalings side by side
_MAX_FINALISTS = 6  # candidates for advice, beside the references


@dataclass(frozen=True)
class TextTable:
    """A table. rows: the cells of each row, one for each column."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def table_of(result: dict[str, Any]) -> TextTable:
    """Return the table of an evaluation's result, as `--json` writes it."""
    return _TABLES[result["kind"]](result["rows"])


# ----------------------------------------------------------------------------------------------


def _perplexity(rows: Rows) -> TextTable:
    """Return a row for each range of positions or window, a column for each scaling.

    With many scalings, rows and columns change places.
    """
    by = "window" if "window" in rows[0] else "positions"
    scalings, places = distinct(rows, "scaling"), distinct(rows, by)
    cells = {(row["scaling"], row[by]): _change(row) for row in rows}
    cells |= {(row["scaling"], row[by]): _interval(row) for row in rows if row["scaling"] == scalings[0]}
    title = "perplexity with its 95% interval; in brackets, the paired difference to the first scaling"
    if len(scalings) > _MAX_COLUMNS:
        lines = [[scaling, *(cells[scaling, place] for place in places)] for scaling in scalings]
        return TextTable(title, ["scaling", *places], lines)
    lines = [[place, *(cells[scaling, place] for scaling in scalings)] for place in places]
    return TextTable(title, [by, *scalings], lines)


def _interval(row: dict[str, Any]) -> str:
    if not math.isfinite(row["low"]):  # unknown for a single position
        return f"{row['perplexity']:.2f}"
    return f"{row['perplexity']:.2f} ({row['low']:.2f} - {row['high']:.2f})"


def _change(row: dict[str, Any]) -> str:
    change, margin = 100 * row["change"], 100 * (row["change_high"] - row["change_low"]) / 2
    digits = 1 if abs(change) < 100 else 0
    return f"{row['perplexity']:.2f} ({change:+.{digits}f}{_plus_minus(margin, digits)}%)"


def _passkey(rows: Rows) -> TextTable:
    """Return a row for each scaling and length, a column for each depth."""
    depths = distinct(rows, "depth")
    table = []
    for scaling, length in dict.fromkeys((row["scaling"], row["length"]) for row in rows):
        cells = [row for row in rows if (row["scaling"], row["length"]) == (scaling, length)]
        found, trials = (sum(cell[name] for cell in cells) for name in ("found", "trials"))
        shares = [f"{cell['found'] / cell['trials']:.0%}" for cell in cells]
        table.append([scaling, f"{length:,}", *shares, f"{found / trials:.0%}"])
    columns = ["scaling", "tokens", *(f"{depth:.0%}" for depth in depths), "all"]
    return TextTable("pass keys found, by depth", columns, table)


def _tasks(rows: Rows) -> TextTable:
    """Return a row for each task and metric, a column for each scaling."""
    scalings = distinct(rows, "scaling")
    cells = {(row["task"], row["metric"], row["scaling"]): row for row in rows}
    table = []
    for task, metric in dict.fromkeys((row["task"], row["metric"]) for row in rows):
        first, *others = (cells[task, metric, scaling] for scaling in scalings)
        table.append([task, metric, str(first["questions"]), _accuracy(first), *map(_compared, others)])
    title = "% with its 95% interval; in brackets, the paired difference to the first scaling"
    return TextTable(title, ["task", "metric", "questions", *scalings], table)


def _accuracy(row: dict[str, Any]) -> str:
    return f"{100 * row['value']:.1f}{_plus_minus(100 * (row['high'] - row['value']), 1)}"


def _compared(row: dict[str, Any]) -> str:
    margin = row["difference_high"] - row["difference"]
    return f"{_accuracy(row)} ({100 * row['difference']:+.1f}{_plus_minus(100 * margin, 1)})"


def _plus_minus(margin: float, digits: int) -> str:
    """Return " ± margin", or an empty string for the unknown margin of a single value."""
    return f" ± {margin:.{digits}f}" if math.isfinite(margin) else ""


def _advise(rows: Rows) -> TextTable:
    """Return a row for each reference and each of the best others."""
    rows = advised_rows(rows)
    default = next(row["scaling"] for row in rows if row["role"] == "default")
    table = [
        [
            row["scaling"] + (" (advised)" if row["advised"] else ""),
            _perplexity_of(row["loss"]),
            "" if row["role"] == "default" else percent(row["against_default"], row["against_default_error"]),
            _perplexity_of(row["within"]),
            "" if row["role"] == "unscaled" else percent(row["cost"], row["cost_error"]),
            _perplexity_of(row["beyond"]),
            _perplexity_of(row["end"]),
        ]
        for row in rows
    ]
    columns = ["scaling", "score", f"against {default}", "trained context", "against none", "beyond it"]
    title = "perplexity, and paired differences with their standard errors"
    return TextTable(title, [*columns, "its last quarter"], table)


def advised_rows(rows: Rows) -> Rows:
    """Return the rows of advice that are shown: the references and the best finalists."""
    others = [row for row in rows if row["role"] == "finalist"][:_MAX_FINALISTS]
    return [row for row in rows if row["role"] in ("unscaled", "default", "reference") or row in others]


def percent(difference: float, error: float) -> str:
    """Return the change of perplexity in percent, from a difference of losses and its error, in nats."""
    ratio = math.exp(difference)
    change, digits = 100 * (ratio - 1), 1 if abs(ratio - 1) > 0.1 else 2
    return f"{change:+.{digits}f} ± {100 * ratio * error:.{digits}f}%"


def _perplexity_of(loss: float) -> str:
    return f"{math.exp(loss):.2f}"


def distinct(rows: Rows, name: str) -> list[Any]:
    """Return the distinct values of a field, in the order of their first row."""
    return list(dict.fromkeys(row[name] for row in rows))


_TABLES = {"perplexity": _perplexity, "passkey": _passkey, "tasks": _tasks, "advise": _advise}
