"""The progress bars shown while a long prompt is read, or a file is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table
from rich.text import Text

_NARROW = 60  # characters: a line in which not everything has room


class _PerSecond(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.{0 if task.speed >= 10 else 1}f} {self._unit}/s" if task.speed else "")


class _Progress(Progress):
    """With room for the ^C of a terminal at the end of its line, which else would be two."""

    def get_renderables(self) -> Iterator[_Narrower]:
        yield _Narrower(self.make_tasks_table(self.tasks))


@dataclass
class _Narrower:
    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self.table, options.update_width(options.max_width - 3))


@contextmanager
def reading_progress(console: Console, label: str = "reading") -> Iterator[Callable[[int, int], None]]:
    """Yields report(done, total), in tokens. Draws nothing where `console` is not a terminal."""
    with labelled_progress(console) as report_of:
        yield report_of(label)


@contextmanager
def labelled_progress(
    console: Console, unit: str = "tokens"
) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Yields report_of(label), which gives report(done, total) of a bar in the place of the last one."""
    counts = [TextColumn("{task.completed:.0f}/{task.total:.0f}")] if console.width >= _NARROW else []
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        *counts,
        _PerSecond(unit),
        TimeRemainingColumn(),
    ]
    with _Progress(
        *columns, console=console, transient=True, expand=True, disable=not console.is_terminal
    ) as bar:

        def report_of(label: str) -> Callable[[int, int], None]:
            for task in bar.task_ids:
                bar.remove_task(task)
            task = bar.add_task(label, total=None, visible=False)
            return lambda done, total: bar.update(task, completed=done, total=total, visible=True)

        yield report_of


@contextmanager
def writing_progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Yields report(done, total), in bytes. Draws nothing where `console` is not a terminal."""
    columns = [
        TextColumn("writing"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("writing", total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
