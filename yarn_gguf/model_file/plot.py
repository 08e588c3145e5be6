"""A picture of a file's rope scaling: how far each dimension is interpolated, and its wavelengths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from yarn_gguf.errors import RopeScalingError, YarnGGUFError
from yarn_gguf.model_file.inspect import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind readers can tell apart
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#767676"
_SHADES = {"extrapolated": "#CFE6F5", "blended": "#FCF3C6", "interpolated": "#F8DCC8"}


def plot_report(report: Report, output: str | Path) -> None:
    """Draw `report` to the file `output`; its suffix gives the format.

    Raises RopeScalingError, OSError; YarnGGUFError for a suffix of which there are no pictures.
    """
    check_format(Path(output))
    if not report.dimensions:
        raise RopeScalingError(f"there is nothing to plot: {report.problem}")
    from matplotlib.figure import Figure  # slow to import; without pyplot there is no display to need

    figure = Figure(figsize=(9, 7), layout="constrained")
    ramp, waves = figure.subplots(2, 1, sharex=True, height_ratios=[2, 3])
    figure.suptitle(_title(report))
    _shade(ramp, report, labelled=True)
    _shade(waves, report, labelled=False)
    _draw_ramp(ramp, report)
    _draw_wavelengths(waves, report)
    figure.savefig(output, dpi=150)


def check_format(path: Path) -> None:
    """Raises YarnGGUFError if there are no pictures of this suffix."""
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise YarnGGUFError(f"{path}: {path.suffix!r} is no kind of picture: one of {', '.join(known)} is")


# ----------------------------------------------------------------------------------------------


def _title(report: Report) -> str:
    method = report.scaling.method
    factor = f" x{report.scaling.factor:g}" if method != "none" else ""
    return f"{report.path.name}: rope scaling {method}{factor}, temperature {report.temperature:.4f}"


def _shade(axes: Axes, report: Report, labelled: bool) -> None:
    """Colour the background by treatment."""
    for treatment, colour in _SHADES.items():
        indices = [each.index for each in report.dimensions if each.treatment == treatment]
        label = f"{treatment} ({len(indices)})" if labelled else None
        for index in indices:
            axes.axvspan(index - 0.5, index + 0.5, color=colour, linewidth=0, label=label)
            label = None  # once in the legend
    axes.set_xlim(-0.5, len(report.dimensions) - 0.5)


def _draw_ramp(axes: Axes, report: Report) -> None:
    indices = [each.index for each in report.dimensions]
    axes.plot(
        indices, [each.interpolation for each in report.dimensions], color=_BLUE, marker="o", markersize=3
    )
    axes.set_ylabel("interpolation\n(0 left alone, 1 by the whole factor)")
    axes.set_ylim(-0.05, 1.05)
    axes.legend(loc="upper left", framealpha=1)


def _draw_wavelengths(axes: Axes, report: Report) -> None:
    indices = [each.index for each in report.dimensions]
    plain = [each.wavelength for each in report.dimensions]
    scaled = [each.scaled_wavelength for each in report.dimensions]
    axes.semilogy(indices, plain, color=_GREY, linestyle="--", label="trained")
    axes.semilogy(indices, scaled, color=_ORANGE, marker="o", markersize=3, label="scaled")
    for length, name in _contexts(report):
        axes.axhline(length, color=_BLUE, linewidth=1)
        axes.annotate(
            f"{name}: {length:,} tokens",
            (0.3, length),
            xytext=(0, 3),
            textcoords="offset points",
            color=_BLUE,
        )
    axes.set_ylabel("wavelength (tokens)")
    axes.set_xlabel("frequency index (a pair of dimensions)")
    axes.legend(loc="lower right", framealpha=1)


def _contexts(report: Report) -> list[tuple[int, str]]:
    original = (report.original_context, "original context")
    if report.usable_context == report.original_context:
        return [original]
    return [original, (report.usable_context, "usable context")]
