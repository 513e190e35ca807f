"""The command `bouton bench` as a Python function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bouton.lab.bench.arms import BenchArm, arms_of
from bouton.lab.bench.measurement import Setting, attach, measure
from bouton.lab.bench.record import Record, write_records
from bouton.lab.bench.table import make_table
from bouton.lab.bench.terminal import LiveProgress, print_table
from bouton.lab.bench.timing import Effort
from bouton.lab.bench.workloads import Workload, named, users
from bouton.lab.folder import prepare


def benchmark(
    *,
    workload: str | None = None,
    model: str | None = None,
    data: str | None = None,
    mechanisms: Sequence[str] = (),
    optimizer: str | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int = 1,
    seconds: float = 20.0,
    precision: float = 0.01,
    out: Path | None = None,
    command: str = "",
    console: Console | None = None,
) -> Record:
    """Measures what mechanisms cost, and prints the table.

    Args:
        workload: `mlp`, `resnet18`, `transformer` or `gpt2`; None: `mlp`, if no model is given.
        model: instead, `file.py:make_model` or a built-in name, as `bouton compare` takes it.
        data: that model's, `file.py:make_data` or a built-in name; one batch of it is taken.
        mechanisms: one text per arm, such as `Grapes(mode="local")`; empty: those of `bench.ARMS`, and what
            the model does not allow is named with the reason.
        optimizer: None: the workload's own, or `sgd`.
        lr: None: the workload's own, or 0.01.
        batch_size: None: the workload's own, or 64.
        device: `cpu` or `cuda`.
        dtype: of weights and inputs: `float32` or `bfloat16`.
        threads: torch's.
        seconds: the most for each measurement.
        precision: the width of the interval at which a measurement stops before that.
        out: a file for the result, as JSON.
        command: what the user typed, for the record.
        console: where to print; None: the terminal.

    Raises:
        ValueError: if something is unknown or out of range, or a mechanism that was asked for cannot be
            attached to the model.
        FolderError: if the result cannot be written.
    """
    console = console or Console(highlight=False)
    setting = Setting(
        device=device,
        dtype=dtype,
        threads=threads,
        effort=Effort(seconds=seconds, precision=precision),
        command=command,
    )
    chosen = _choose(workload, model, data, optimizer=optimizer, lr=lr, batch_size=batch_size)
    arms = arms_of(mechanisms)
    if mechanisms:
        _check(chosen, arms)
    if out is not None:
        prepare(out.absolute().parent)  # a place that cannot be written is found now, not after minutes
    with LiveProgress(console, len(arms)) as progress:
        record = measure(chosen, arms, setting, progress=progress)
    if out is not None:
        write_records(out, [record])
    print_table(console, make_table(record))
    return record


def _choose(
    workload: str | None,
    model: str | None,
    data: str | None,
    *,
    optimizer: str | None,
    lr: float | None,
    batch_size: int | None,
) -> Workload:
    if model is None and data is None:
        return named(workload or "mlp", optimizer=optimizer, lr=lr, batch_size=batch_size)
    if workload is not None:
        raise ValueError(
            f"the workload {workload} has its own model and data: leave out --model and --data"
        )
    if model is None or data is None:
        raise ValueError("type both --model and --data, such as --model net.py:make_model --data digits")
    return users(
        model,
        data,
        optimizer="sgd" if optimizer is None else optimizer,
        lr=0.01 if lr is None else lr,
        batch_size=64 if batch_size is None else batch_size,
    )


def _check(workload: Workload, arms: Sequence[BenchArm]) -> None:
    """Finds what cannot be attached before anything is measured."""
    for arm in arms:
        attach(workload.start(), arm.mechanisms)
