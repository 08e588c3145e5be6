"""Pictures of results, for colour-blind readers too, and for print in black and white."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from yarn_gguf import palette
from yarn_gguf.evaluate.show.tables import advised_rows, distinct

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osDv^P*X"
_DASHES = ("-", "--", ":", "-.")
_MAX_COLUMNS = 3  # panels side by side
_MAX_WIDENING = 1.5  # how far intervals may widen the axis beyond the values, as a factor
_MARGIN = 1.05  # between the data and the ends of the axis, as a factor

Rows = Sequence[dict[str, Any]]


def picture_of(result: dict[str, Any], format_: str) -> bytes:
    """Return the picture of an evaluation's result, as `--json` writes it. format_: such as png or svg."""
    picture = io.BytesIO()
    figure_of(result).savefig(picture, format=format_, dpi=150)
    return picture.getvalue()


def figure_of(result: dict[str, Any]) -> Figure:
    """Return the figure of an evaluation's result; see picture_of."""
    return _FIGURES[result["kind"]](result)


# ----------------------------------------------------------------------------------------------


def _perplexity(result: dict[str, Any]) -> Figure:
    """Draw a line with its 95% interval for each scaling: by position, by window or by the swept value."""
    if result["rows"][0].get("swept"):
        return _sweep(result)
    figure = _figure(9, 5.5)
    axes = figure.subplots()
    rows = [row for row in result["rows"] if not row.get("whole")]
    looks = styles(distinct(rows, "scaling"))
    for i, (scaling, style) in enumerate(looks.items()):
        mine = [row for row in rows if row["scaling"] == scaling]
        depth = 1 - i / len(looks)  # lines drawn first are wider: a later one may lie in the same place
        sizes = {"markersize": 5 + 4 * depth, "linewidth": 1.2 + 1.2 * depth}
        _line(axes, [_place(row) for row in mine], mine, scaling, style | sizes)
    axes.set_yscale("log")
    axes.set_ylim(_limits(rows))
    _plain_numbers(axes)
    if "window" not in rows[0]:
        axes.set_xlim(min(row["start"] for row in rows), max(row["stop"] for row in rows))
    _mark_trained_context(axes, result["model"]["original_context"])
    axes.set_xlabel("window, tokens" if "window" in rows[0] else "position, tokens")
    axes.set_ylabel("perplexity")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _limits(rows: Rows) -> tuple[float, float]:
    """Return the limits of the axis: all perplexities, and their intervals unless these are much wider."""
    values, lows, highs = (
        [row[name] for row in rows if math.isfinite(row[name])] for name in ("perplexity", "low", "high")
    )
    if not values:  # the model's arithmetic overflows
        return 1, 10
    low = max(min(values + lows), min(values) / _MAX_WIDENING)
    high = min(max(values + highs), max(values) * _MAX_WIDENING)
    return low / _MARGIN, high * _MARGIN


def _mark_trained_context(axes: Axes, tokens: int) -> None:
    """Mark the trained context if it is within the axis."""
    low, high = axes.get_xlim()
    if not low < tokens < high:
        return
    axes.axvline(tokens, color=palette.GREY, linewidth=1)
    is_right = tokens > (low + high) / 2
    axes.annotate(
        "trained context",
        (tokens, 1),
        xytext=(-4 if is_right else 4, -4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        ha="right" if is_right else "left",
        color=palette.DARK_GREY,
    )


def _sweep(result: dict[str, Any]) -> Figure:
    """Draw the change of perplexity by the swept value, as in the paper's appendix A.2.

    A panel for each range of positions, a line for each scaling; a circle marks the least loss.
    """
    by = "window" if "window" in result["rows"][0] else "positions"
    panels = distinct(result["rows"], by)
    figure, grid = _grid(len(panels), 3.4, 3.2)
    for axes, place in zip(grid, panels, strict=True):
        here = [row for row in result["rows"] if row[by] == place]
        for of, style in styles(distinct(here, "of")).items():
            rows = sorted((row for row in here if row["of"] == of), key=lambda row: row["value"])
            values = [row["value"] for row in rows]
            _line(axes, values, rows, of, style, ("change", "change_low", "change_high"), 100)
            best = min(rows, key=lambda row: row["loss"])
            axes.plot(best["value"], 100 * best["change"], "o", ms=11, mfc="none", mec=style["color"])
        axes.set_title(place)
        axes.set_xlabel(result["rows"][0]["swept"])
    grid[0].set_ylabel(f"change of perplexity from {result['rows'][0]['scaling']}, %")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _passkey(result: dict[str, Any]) -> Figure:
    """Draw a heat map for each scaling: the share of keys found, by length and depth."""
    rows = result["rows"]
    scalings, lengths, depths = (distinct(rows, name) for name in ("scaling", "length", "depth"))
    shares = {(row["scaling"], row["length"], row["depth"]): row["found"] / row["trials"] for row in rows}
    figure, grid = _grid(len(scalings), 1.2 + 0.45 * len(lengths), 1.5 + 0.4 * len(depths))
    for axes, scaling in zip(grid, scalings, strict=True):
        found = np.array([[shares[scaling, length, depth] for length in lengths] for depth in depths])
        axes.imshow(found, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for y, x in np.ndindex(found.shape):  # the number too, for print in black and white
            colour = "black" if found[y, x] > 0.5 else "white"
            axes.text(x, y, f"{100 * found[y, x]:.0f}", ha="center", va="center", color=colour, fontsize=8)
        axes.set_title(scaling)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=45)
        axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    figure.supxlabel("tokens")
    figure.supylabel("depth of the key")
    figure.suptitle("pass keys found, %")
    return figure


def _tasks(result: dict[str, Any]) -> Figure:
    """Draw a panel for each task and metric: a point with its 95% interval for each scaling."""
    panels = list(dict.fromkeys((row["task"], row["metric"]) for row in result["rows"]))
    scalings = distinct(result["rows"], "scaling")
    figure, grid = _grid(len(panels), 3.4, 1.2 + 0.35 * len(scalings))
    for axes, (task, metric) in zip(grid, panels, strict=True):
        rows = [row for row in result["rows"] if (row["task"], row["metric"]) == (task, metric)]
        for y, (row, style) in enumerate(zip(rows, styles(scalings).values(), strict=True)):
            low, value, high = (100 * row[name] for name in ("low", "value", "high"))
            low, high = max(low, min(0, value)), min(high, max(100, value))  # Student's t has no bounds
            axes.errorbar(value, y, xerr=[[value - low], [high - value]], capsize=3, **style)
        axes.set_yticks(range(len(scalings)), scalings)
        axes.invert_yaxis()
        axes.set_title(f"{task}, {metric}", fontsize=10)
    figure.supxlabel("correct answers, %")
    return figure


def _advise(result: dict[str, Any]) -> Figure:
    """Draw each shown scaling's change of the score against plain YaRN, with its 95% interval."""
    rows = advised_rows(result["rows"])
    figure = _figure(7, 1.2 + 0.35 * len(rows))
    axes = figure.subplots()
    for y, (row, style) in enumerate(
        zip(rows, styles([row["scaling"] for row in rows]).values(), strict=True)
    ):
        change, reach = row["against_default"], row["against_default_reach"]
        low, value, high = (100 * math.expm1(each) for each in (change - reach, change, change + reach))
        axes.errorbar(value, y, xerr=[[value - low], [high - value]], capsize=3, **style)
    axes.set_xscale("symlog", linthresh=10)  # without scaling, it may be hundreds of percent
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}")
    axes.set_yticks(range(len(rows)), [row["scaling"] for row in rows])
    axes.invert_yaxis()
    axes.axvline(0, color=palette.GREY, linewidth=1)
    axes.set_xlabel("change of the score against plain YaRN, %: less is better")
    return figure


_FIGURES = {"perplexity": _perplexity, "passkey": _passkey, "tasks": _tasks, "advise": _advise}


def styles(scalings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a line style for each scaling: colour by method, dashes and marker by scaling."""
    methods = list(dict.fromkeys(map(_method, scalings)))
    found: dict[str, dict[str, Any]] = {}
    for i, scaling in enumerate(scalings):
        before = sum(_method(each) == _method(scaling) for each in found)
        found[scaling] = {
            "color": palette.LINES[methods.index(_method(scaling)) % len(palette.LINES)],
            "linestyle": _DASHES[before % len(_DASHES)],
            "marker": _MARKERS[i % len(_MARKERS)],
        }
    return found


def _method(scaling: str) -> str:
    return scaling.removeprefix("dynamic-").partition(",")[0].partition(":")[0]


def _place(row: dict[str, Any]) -> float:
    """Return the x value of a row: the window, or the middle of its positions."""
    return float(row["window"].replace(",", "")) if "window" in row else (row["start"] + row["stop"]) / 2


def _line(
    axes: Axes,
    places: list[float],
    rows: Rows,
    label: str,
    style: dict[str, Any],
    names: Sequence[str] = ("perplexity", "low", "high"),
    scale: float = 1,
) -> None:
    """Draw a line with its interval. names: the fields of the value, and of the interval's two ends."""
    value, low, high = ([scale * row[name] for row in rows] for name in names)
    axes.plot(places, value, label=label, **{"markersize": 5, "linewidth": 1.5} | style)
    if not all(math.isfinite(row["error"]) for row in rows):  # unknown for a single position
        return
    axes.fill_between(places, low, high, color=style["color"], alpha=0.1, linewidth=0)
    if len(places) == 1:  # a single point has no area to fill
        axes.vlines(places, low, high, color=style["color"], linewidth=1)


def _plain_numbers(axes: Axes) -> None:
    """Write 30 instead of 3 x 10^1 on the y axis, and whole numbers on the x axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(color=palette.LIGHT_GREY, linewidth=0.5)


def _grid(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels, each of this size in inches."""
    columns = min(count, _MAX_COLUMNS)
    lines = math.ceil(count / columns)
    figure = _figure(1 + width * columns, 0.8 + height * lines)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.remove()
    return figure, list(panels[:count])


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # slow to import; pyplot would need a display

    return Figure(figsize=(width, height), layout="constrained")
