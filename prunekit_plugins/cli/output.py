"""What a command prints: tables and colours on a terminal, plain text in a pipe, or one JSON object."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import attrs
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable


def is_terminal(stream: IO[str]) -> bool:
    """Whether somebody looks at a stream."""
    return stream.isatty()


@attrs.frozen
class Table:
    """Rows under headings.

    Attributes:
        title: What the table is about.
        columns: The headings; those of numbers start with ``">"``, which aligns them to the right.
        rows: One text per column.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def plain(self) -> list[str]:
        """Lays the table out in lines of plain text."""
        heads = [column.lstrip(">") for column in self.columns]
        widths = [max(len(row[i]) for row in [tuple(heads), *self.rows]) for i in range(len(heads))]

        def line(cells: Sequence[str]) -> str:
            placed = [
                cell.rjust(width) if column.startswith(">") else cell.ljust(width)
                for cell, width, column in zip(cells, widths, self.columns, strict=True)
            ]
            return ("  " + "  ".join(placed)).rstrip()

        return [self.title, line(heads), *(line(row) for row in self.rows)]

    def rich(self) -> RichTable:
        """Makes the table for a terminal, without its title."""
        table = RichTable(header_style="cyan", box=box.SIMPLE_HEAD)
        for column in self.columns:
            right = column.startswith(">")
            table.add_column(
                escape(column.lstrip(">")), justify="right" if right else "left", no_wrap=right, overflow="fold"
            )
        for row in self.rows:
            table.add_row(*(escape(cell) for cell in row))
        return table


class Output:
    """Where a command's results go.

    Args:
        as_json: Print one JSON object and nothing else.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self._console = Console(highlight=False) if is_terminal(sys.stdout) else None

    def line(self, text: str = "", *, good: bool | None = None) -> None:
        """Prints a line for people; ``good`` colours it on a terminal."""
        if self.as_json:
            return
        if self._console is None:
            print(text)
        else:
            self._console.print(escape(text), style="" if good is None else "green" if good else "red")

    def warning(self, text: str) -> None:
        """Prints a line on stderr, where it is in nobody's way, for people and beside JSON."""
        print(text, file=sys.stderr)

    def warn_of_blocks(self, unused: Mapping[str, str]) -> None:
        """Says which plugins are blocked and aren't installed: name to what blocks it."""
        for name, by in unused.items():
            self.warning(f"{by} blocks {name}, which isn't installed")

    def table(self, table: Table) -> None:
        """Prints a table for people."""
        if self.as_json:
            return
        if self._console is None:
            print("\n".join(table.plain()))
        else:
            self._console.print(escape(table.title), style="bold")
            self._console.print(table.rich())

    def result(self, data: Mapping[str, Any]) -> None:
        """Prints the result for programs, when that was asked for."""
        if self.as_json:
            print(json.dumps(data, indent=2))

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Shows on a terminal that something is being done, and for how long; says nothing in a pipe."""
        if not is_terminal(sys.stderr):
            yield
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            bar.add_task(escape(what), total=None)
            yield

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """Shows a progress bar with the time left on a terminal, and one line of text in a pipe.

        Args:
            what: What is being done.
            total: Number of steps.

        Yields:
            A function to be called after every step.
        """
        if not is_terminal(sys.stderr):
            self.line(what)
            yield lambda: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(escape(what), total=total)
            yield lambda: bar.advance(task)

    @contextlib.contextmanager
    def tracked(self, what: str) -> Iterator[Callable[[int, int | None], None]]:
        """Shows a progress bar on a terminal for work whose size is known when it begins, and one line in a pipe.

        Args:
            what: What is being done.

        Yields:
            A function to be called with how much is done and how much there is.
        """
        if not is_terminal(sys.stderr):
            self.line(what)
            yield lambda done, total: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(escape(what), total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def cost_rows(costs: Mapping[str, tuple[float, float]]) -> list[tuple[str, ...]]:
    """Words costs before and after as rows: name, before, after, what is left."""
    return [
        (name, f"{before:,.0f}", f"{after:,.0f}", f"{after / before:.1%}" if before else "-")
        for name, (before, after) in costs.items()
    ]


def cost_data(costs: Mapping[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    """The same for programs."""
    return {name: {"before": before, "after": after} for name, (before, after) in costs.items()}
