"""Pictures of what was measured: told apart by colour-blind readers, and in black and white."""

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
_PANELS = 3  # heat maps side by side
_BEYOND = 1.5  # times the values: as far as their intervals widen the axis
_MARGIN = 1.05  # of the axis

Rows = Sequence[dict[str, Any]]


def picture_of(result: dict[str, Any], format_: str) -> bytes:
    """A picture, such as a png, of the results of an evaluation, as `--json` writes them."""
    picture = io.BytesIO()
    figure_of(result).savefig(picture, format=format_, dpi=150)
    return picture.getvalue()


def figure_of(result: dict[str, Any]) -> Figure:
    """See picture_of."""
    return _FIGURES[result["kind"]](result)


# ----------------------------------------------------------------------------------------------


def _perplexity(result: dict[str, Any]) -> Figure:
    """Lines with their 95% intervals: by position, by window or by the value that is swept."""
    if result["rows"][0].get("swept"):
        return _sweep(result)
    figure = _figure(9, 5.5)
    axes = figure.subplots()
    rows = [row for row in result["rows"] if not row.get("whole")]
    looks = styles(distinct(rows, "scaling"))
    for i, (scaling, style) in enumerate(looks.items()):
        mine = [row for row in rows if row["scaling"] == scaling]
        under = 1 - i / len(looks)  # wider than what is drawn over it, which may lie in the same place
        sizes = {"markersize": 5 + 4 * under, "linewidth": 1.2 + 1.2 * under}
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
    """Of perplexity: all values, and their intervals as far as these are not much wider."""
    values, lows, highs = (
        [row[name] for row in rows if math.isfinite(row[name])] for name in ("perplexity", "low", "high")
    )
    if not values:  # the model's arithmetic overflows
        return 1, 10
    low = max(min(values + lows), min(values) / _BEYOND)
    high = min(max(values + highs), max(values) * _BEYOND)
    return low / _MARGIN, high * _MARGIN


def _mark_trained_context(axes: Axes, tokens: int) -> None:
    """If the axis reaches that far."""
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
    """A panel for each range of positions, a line for each scaling: the change of perplexity, as in the
    paper's appendix A.2."""
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
    grid[0].set_ylabel(f"perplexity against {result['rows'][0]['scaling']}, %")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _passkey(result: dict[str, Any]) -> Figure:
    """A heat map for each scaling: the share of keys that were found, by length and depth."""
    rows = result["rows"]
    scalings, lengths, depths = (distinct(rows, name) for name in ("scaling", "length", "depth"))
    shares = {(row["scaling"], row["length"], row["depth"]): row["found"] / row["trials"] for row in rows}
    figure, grid = _grid(len(scalings), 1.2 + 0.45 * len(lengths), 1.5 + 0.4 * len(depths))
    for axes, scaling in zip(grid, scalings, strict=True):
        found = np.array([[shares[scaling, length, depth] for length in lengths] for depth in depths])
        axes.imshow(found, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for y, x in np.ndindex(found.shape):  # the number too: for print in black and white
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
    """A panel for each task and metric: a point with its 95% interval for each scaling."""
    panels = list(dict.fromkeys((row["task"], row["metric"]) for row in result["rows"]))
    scalings = distinct(result["rows"], "scaling")
    figure, grid = _grid(len(panels), 3.4, 1.2 + 0.35 * len(scalings))
    for axes, (task, metric) in zip(grid, panels, strict=True):
        rows = [row for row in result["rows"] if (row["task"], row["metric"]) == (task, metric)]
        for y, (row, style) in enumerate(zip(rows, styles(scalings).values(), strict=True)):
            low, value, high = (100 * row[name] for name in ("low", "value", "high"))
            low, high = max(low, min(0, value)), min(high, max(100, value))  # Student's t knows no bounds
            axes.errorbar(value, y, xerr=[[value - low], [high - value]], capsize=3, **style)
        axes.set_yticks(range(len(scalings)), scalings)
        axes.invert_yaxis()
        axes.set_title(f"{task}, {metric}", fontsize=10)
    figure.supxlabel("% right")
    return figure


def _advise(result: dict[str, Any]) -> Figure:
    """The change of the score against plain YaRN, with its 95% interval, for each scaling that is shown."""
    rows = advised_rows(result["rows"])
    figure = _figure(7, 1.2 + 0.35 * len(rows))
    axes = figure.subplots()
    for y, (row, style) in enumerate(
        zip(rows, styles([row["scaling"] for row in rows]).values(), strict=True)
    ):
        change, reach = row["against_default"], row["against_default_reach"]
        low, value, high = (100 * math.expm1(each) for each in (change - reach, change, change + reach))
        axes.errorbar(value, y, xerr=[[value - low], [high - value]], capsize=3, **style)
    axes.set_xscale("symlog", linthresh=10)  # without scaling it may be hundreds
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}")
    axes.set_yticks(range(len(rows)), [row["scaling"] for row in rows])
    axes.invert_yaxis()
    axes.axvline(0, color=palette.GREY, linewidth=1)
    axes.set_xlabel("score against plain YaRN, %: less is better")
    return figure


_FIGURES = {"perplexity": _perplexity, "passkey": _passkey, "tasks": _tasks, "advise": _advise}


def styles(scalings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A line's style for each: a method has its colour, and its scalings have their dashes and markers."""
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
    """The window, or the middle of the positions."""
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
    """names: of the value and of the ends of its interval."""
    value, low, high = ([scale * row[name] for row in rows] for name in names)
    axes.plot(places, value, label=label, **{"markersize": 5, "linewidth": 1.5} | style)
    if not all(math.isfinite(row["error"]) for row in rows):  # there is none of a single position
        return
    axes.fill_between(places, low, high, color=style["color"], alpha=0.1, linewidth=0)
    if len(places) == 1:  # where nothing is to be filled
        axes.vlines(places, low, high, color=style["color"], linewidth=1)


def _plain_numbers(axes: Axes) -> None:
    """30, not 3 x 10^1; whole numbers on the axis below."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(color=palette.LIGHT_GREY, linewidth=0.5)


def _grid(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """`count` panels, each of this size in inches."""
    columns = min(count, _PANELS)
    lines = math.ceil(count / columns)
    figure = _figure(1 + width * columns, 0.8 + height * lines)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.remove()
    return figure, list(panels[:count])


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # slow to import; without pyplot there is no display to need

    return Figure(figsize=(width, height), layout="constrained")
