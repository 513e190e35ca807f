"""What was measured, on what machine: frozen, and JSON both ways."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import bouton
from bouton.lab import from_json
from bouton.lab.bench.estimate import Estimate
from bouton.lab.folder import write_atomically
from bouton.native.library import loops_used


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One part of an arm.

    Args:
        name: what part.
        weight: of its median in the arm's ratio.
        steps: in each block.
        plain_ms: median time of a plain step in milliseconds.
        ratios: attached over plain, for each pair of blocks.
    """

    name: str
    weight: float
    steps: int
    plain_ms: float
    ratios: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What mechanisms cost, or why they could not be had.

    Args:
        parts: what was timed.
        ratio: of the step's time to that of the plain step.
        weights: how many weights the mechanisms take.
        state: bytes kept between two steps beyond those of plain training, for each of these weights.
        peak: bytes at the worst moment beyond those of plain training, for each of these weights.
        failed: why there is nothing else here.
    """

    parts: tuple[Timed, ...] = ()
    ratio: Estimate | None = None
    weights: int = 0
    state: float | None = None
    peak: float | None = None
    failed: str | None = None


@dataclass(frozen=True, kw_only=True)
class ArmRecord:
    """One row.

    Args:
        name: of the arm.
        mechanisms: their dictionaries.
        budget: the largest ratio that is meant to be, if any.
        measured: what they cost.
        other: what costs something else that it is compared with, where that was measured.
    """

    name: str
    mechanisms: tuple[dict[str, Any], ...]
    budget: float | None = None
    measured: Measured
    other: Measured | None = None

    @property
    def met(self) -> bool | None:
        """Whether the median is at or below the budget; None without either."""
        if self.budget is None or self.measured.ratio is None:
            return None
        return self.measured.ratio.median <= self.budget


@dataclass(frozen=True, kw_only=True)
class Record:
    """One workload's measurements.

    Args:
        workload: its name.
        summary: model, batch and optimizer.
        parameters: how many numbers the model trains.
        device: where.
        dtype: of the weights.
        threads: torch's.
        seconds: the most for each measurement.
        precision: the width of the interval at which it stopped before.
        command: that measured it.
        machine: what it ran on, and versions.
        other: what each row is compared with, if with anything.
        arms: the rows.
    """

    workload: str
    summary: str
    parameters: int
    device: str
    dtype: str
    threads: int
    seconds: float
    precision: float
    command: str
    machine: dict[str, str | int] = field(default_factory=dict)
    other: str = ""
    arms: tuple[ArmRecord, ...] = ()

    @property
    def plain_ms(self) -> float:
        """Median time of a plain step in milliseconds."""
        times = [part.plain_ms for arm in self.arms for part in arm.measured.parts]
        return statistics.median(times) if times else float("nan")


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Writes a file that holds all of these, whole or not at all.

    Raises:
        FolderError: if it cannot be written.
    """
    lines = json.dumps([asdict(record) for record in records], indent=1, allow_nan=False)
    write_atomically(path, lines + "\n")


def read_records(path: Path) -> list[Record]:
    """Reads what `write_records` wrote.

    Raises:
        ValueError: if there is no such file, or it holds something else.
    """
    try:
        return list(from_json.build(tuple[Record, ...], from_json.read(path)))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a benchmark's result: {error}") from error


def machine(device: str) -> dict[str, str | int]:
    """What the numbers were made with."""
    found: dict[str, str | int] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "bouton": bouton.__version__,
        "loops": loops_used(),
    }
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    """The processor's name, which Linux alone has in a file."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gib() -> int:
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
