"""The sweep's progress and its table in the terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

from bouton.lab.arms import Arm
from bouton.lab.records import Epoch, RunResult
from bouton.lab.report.table import Table
from bouton.lab.visible import visible


class LiveProgress:
    """Two live bars, the sweep's and the run's, under one line for each run that is done.

    Args:
        console: where to write.
        runs: the number of runs in the sweep.
    """

    def __init__(self, console: Console, runs: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._sweep = self._progress.add_task("all runs", total=runs)
        self._run = self._progress.add_task("epochs", total=None, visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def start_run(self, arm: Arm, seed: int, epochs: int) -> None:
        """Starts the run's bar anew."""
        self._progress.reset(
            self._run, total=epochs, visible=True, description=f"seed {seed} {visible(arm.name)}"
        )

    def end_epoch(self, epoch: Epoch) -> None:
        """Moves the run's bar."""
        self._progress.advance(self._run)

    def end_run(self, arm: Arm, seed: int, result: RunResult, *, made_before: bool) -> None:
        """Moves the sweep's bar and says how the run ended."""
        if result.status == "finished":
            ending = f"{result.epochs[-1].test_accuracy:.2%}"
        else:
            reason = (result.error or "").strip().splitlines()[-1:]
            ending = f"{result.status}: {''.join(reason)}"
        line = f"seed {seed}  {arm.name}  {ending}{'  (made before)' * made_before}"
        self._progress.console.print(Text(visible(line)))
        self._progress.advance(self._sweep)

    def wait(self, runs: int) -> None:
        """Shows what the run's bar stands still for."""
        waiting = f"waiting for {runs} run{'' if runs == 1 else 's'} of other processes"
        self._progress.update(self._run, total=None, completed=0, visible=True, description=waiting)


def print_table(console: Console, table: Table) -> None:
    """Prints the numbers, a verdict for each arm, what was left out, and what the columns mean.

    The table fits 80 columns: the learning rate stands under the arm's name.
    """
    grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, header in enumerate([table.headers[0], *table.headers[2:-1]]):
        grid.add_column(
            Text(header), justify="right" if number else "left", no_wrap=number > 0, overflow="fold"
        )
    for name, rate, *cells, _ in table.rows:
        grid.add_row(Text(f"{visible(name)}\nlr {rate}"), *map(Text, cells))
    console.print(Text(visible(table.title), style="bold"), "", grid, "", sep="\n")
    for row in table.rows:
        console.print(Text.assemble((visible(row[0]), "bold"), ": ", visible(row[-1])))
    for name, reason in table.left_out:
        console.print(Text.assemble((visible(name), "bold"), ": left out: ", visible(reason)))
    console.print()
    for note in table.notes:
        console.print(Text(note, style="dim"))
