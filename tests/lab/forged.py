"""Sweeps that were never made: files with any text in them."""

from __future__ import annotations

from pathlib import Path

from bouton.lab.comparison import Comparison, keep_comparison
from bouton.lab.records import Epoch, RunResult
from bouton.lab.runs import RunStore


def finished(epochs: int = 1, **changes: object) -> RunResult:
    """A result as a run of so many epochs leaves it."""
    numbers = {"train_loss": 1.0, "test_loss": 1.0, "test_accuracy": 0.5, "step_seconds": 0.1}
    made = tuple(Epoch(epoch=n, step=n, **numbers) for n in range(1, epochs + 1))
    return RunResult(**{"status": "finished", "epochs": made, "lr": 0.1, **changes})


def write_sweep(comparison: Comparison, folder: Path, *results: RunResult) -> None:
    """The files of a sweep that was never made; the arms have the results in turn."""
    keep_comparison(folder, comparison)
    for number, (arm, seed) in enumerate(comparison.runs()):
        RunStore(folder).save(comparison.config(arm, seed), results[number % len(results)])
