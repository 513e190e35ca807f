"""The benchmark's progress and its table in the terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

from bouton.lab.bench.record import Measured
from bouton.lab.bench.table import Table, ratio_text
from bouton.lab.visible import visible


class LiveProgress:
    """A live bar under one line for each measurement that is done.

    Args:
        console: where to write.
        measurements: how many there will be.
    """

    def __init__(self, console: Console, measurements: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._bar = self._progress.add_task("", total=measurements)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, what: str) -> None:
        """Names what is being measured."""
        self._progress.update(self._bar, description=visible(what))

    def end(self, what: str, measured: Measured) -> None:
        """Moves the bar and says what was found."""
        self._progress.console.print(Text(visible(f"{what}  {ratio_text(measured)}")))
        self._progress.advance(self._bar)


def print_table(console: Console, table: Table) -> None:
    """Prints the numbers, what could not be measured, and what the columns mean.

    The table fits 80 columns: the interval stands under its ratio.
    """
    grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, header in enumerate(table.headers):
        grid.add_column(Text(header), justify="right" if number else "left", overflow="fold")
    for name, *cells in table.rows:
        grid.add_row(
            Text(visible(name)), *(Text(cell.replace(" [", "\n[").replace(", ", ",")) for cell in cells)
        )
    console.print(Text(visible(table.title), style="bold"), "", grid, "", sep="\n")
    for name, reason in table.failed:
        console.print(Text.assemble((visible(name), "bold"), ": ", visible(reason)))
    for note in table.notes:
        console.print(Text(visible(note), style="dim"))
