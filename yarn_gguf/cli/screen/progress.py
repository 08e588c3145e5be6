"""Show a progress bar while a long prompt is read or a file is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich import progress as bars
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

from yarn_gguf.progress import Progress

_NARROW = 60  # characters; a narrower line has no room for the counts
_INTERRUPT = 3  # characters at the end of the line, for the terminal's ^C


class _PerSecond(bars.ProgressColumn):
    """The speed, in units per second."""

    def __init__(self, unit: str) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._unit = unit

    def render(self, task: bars.Task) -> Text:
        return Text(f"{task.speed:,.{0 if task.speed >= 10 else 1}f} {self._unit}/s" if task.speed else "")


class _NarrowBar(bars.Progress):
    """A bar that leaves room for the terminal's ^C, which would make a full line wrap."""

    def get_renderables(self) -> Iterator[_Narrowed]:
        yield _Narrowed(self.make_tasks_table(self.tasks))


@dataclass
class _Narrowed:
    """A table that does not reach the end of the line."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self.table, options.update_width(options.max_width - _INTERRUPT))


@contextmanager
def reading_progress(console: Console, label: str = "reading") -> Iterator[Progress]:
    """Yield report(done, total), in tokens. Draws nothing if `console` is not a terminal."""
    with labelled_progress(console) as report_of:
        yield report_of(label)


@contextmanager
def labelled_progress(console: Console, unit: str = "tokens") -> Iterator[Callable[[str], Progress]]:
    """Yield report_of(label), which starts a bar in the place of the last one.

    It returns report(done, total). Draws nothing if `console` is not a terminal.
    """
    counts = [bars.TextColumn("{task.completed:.0f}/{task.total:.0f}")] if console.width >= _NARROW else []
    columns = [
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=None),
        *counts,
        _PerSecond(unit),
        bars.TimeRemainingColumn(),
    ]
    with _NarrowBar(
        *columns, console=console, transient=True, expand=True, disable=not console.is_terminal
    ) as bar:

        def report_of(label: str) -> Progress:
            for task in bar.task_ids:
                bar.remove_task(task)
            return _report(bar, label)

        yield report_of


@contextmanager
def writing_progress(console: Console) -> Iterator[Progress]:
    """Yield report(done, total), in bytes. Draws nothing if `console` is not a terminal."""
    columns = [
        bars.TextColumn("writing"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    ]
    with bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield _report(bar, "writing")


def _report(bar: bars.Progress, label: str) -> Progress:
    """Start a task that shows from its first report on, and return the function that reports."""
    task = bar.add_task(label, total=None, visible=False)
    return lambda done, total: bar.update(task, completed=done, total=total, visible=True)
