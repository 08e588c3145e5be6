"""Plot a file's rope scaling: how far each dimension is interpolated, and its wavelengths."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from yarn_gguf import palette
from yarn_gguf.disk.fingerprint import model_files
from yarn_gguf.disk.replace import replace_file
from yarn_gguf.errors import RopeScalingError, YarnGGUFError
from yarn_gguf.model_file.inspect import Report
from yarn_gguf.rope.scaling import RopeScaling

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHADES = {
    "extrapolated": palette.PALE_BLUE,
    "blended": palette.PALE_YELLOW,
    "interpolated": palette.PALE_VERMILION,
}


def plot_report(report: Report, output: str | Path) -> None:
    """Draw `report` to the file `output`. The suffix gives the format.

    Raises RopeScalingError for an unsound scaling, YarnGGUFError as check_format and replace_file do.
    """
    check_format(Path(output))
    if report.scaling is None:
        raise RopeScalingError(f"there is nothing to plot: {report.problem}")
    from matplotlib.figure import Figure  # slow to import; pyplot would need a display

    figure = Figure(figsize=(9, 7), layout="constrained")
    ramp, waves = figure.subplots(2, 1, sharex=True, height_ratios=[2, 3])
    figure.suptitle(_title(report.path, report.scaling))
    _shade(ramp, report, labelled=True)
    _shade(waves, report, labelled=False)
    _draw_ramp(ramp, report)
    _draw_wavelengths(waves, report)
    picture = BytesIO()
    figure.savefig(picture, dpi=150, format=Path(output).suffix[1:].lower())
    replace_file(
        Path(output),
        picture.getvalue(),
        model_files(report.path),
        error=YarnGGUFError,
        elsewhere="name another file",
    )


def check_format(path: Path) -> None:
    """Raise YarnGGUFError if matplotlib writes no pictures with the suffix of `path`."""
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise YarnGGUFError(f"{path}: {path.suffix!r} is no kind of picture: one of {', '.join(known)} is")


# ----------------------------------------------------------------------------------------------


def _title(path: Path, scaling: RopeScaling) -> str:
    factor = f" x{scaling.factor:g}" if scaling.method != "none" else ""
    temperature = f"temperature {scaling.temperature():.4f}"
    return f"{path.name}: rope scaling {scaling.method}{factor}, {temperature}"


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
    interpolation = [each.interpolation for each in report.dimensions]
    axes.plot(indices, interpolation, color=palette.BLUE, marker="o", markersize=3)
    axes.set_ylabel("interpolation\n(0 left alone, 1 by the whole factor)")
    axes.set_ylim(-0.05, 1.05)
    axes.legend(loc="upper left", framealpha=1)


def _draw_wavelengths(axes: Axes, report: Report) -> None:
    indices = [each.index for each in report.dimensions]
    plain = [each.wavelength for each in report.dimensions]
    scaled = [each.scaled_wavelength for each in report.dimensions]
    axes.semilogy(indices, plain, color=palette.GREY, linestyle="--", label="trained")
    axes.semilogy(indices, scaled, color=palette.VERMILION, marker="o", markersize=3, label="scaled")
    contexts = {report.original_context: "original context"}
    if report.usable_context is not None:
        contexts.setdefault(report.usable_context, "usable context")
    for length, name in contexts.items():
        axes.axhline(length, color=palette.BLUE, linewidth=1)
        axes.annotate(
            f"{name}: {length:,} tokens",
            (0.3, length),
            xytext=(0, 3),
            textcoords="offset points",
            color=palette.BLUE,
        )
    axes.set_ylabel("wavelength (tokens)")
    axes.set_xlabel("frequency index (a pair of dimensions)")
    axes.legend(loc="lower right", framealpha=1)
