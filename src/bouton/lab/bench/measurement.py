"""Measuring a workload: each arm against a plain training of its own beside it."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Protocol

import torch

import bouton
from bouton.lab.bench.arms import BenchArm, Part, parts_of
from bouton.lab.bench.estimate import estimate
from bouton.lab.bench.memory import footprint
from bouton.lab.bench.record import ArmRecord, Measured, Record, Timed, machine
from bouton.lab.bench.timing import Effort, Steps, clock_of, time_pairs
from bouton.lab.bench.workloads import SEED, Training, Workload
from bouton.mechanism import Mechanism

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Equip = Callable[[Training], int]  # puts something on a training; gives the number of weights that it takes


class Progress(Protocol):
    """Who wants to know how far it is."""

    def start(self, what: str) -> None:
        """A measurement starts."""

    def end(self, what: str, measured: Measured) -> None:
        """It is over."""


class Silent:
    """Says nothing."""

    def start(self, what: str) -> None:
        """A measurement starts."""

    def end(self, what: str, measured: Measured) -> None:
        """It is over."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Under what a workload is measured.

    Args:
        device: `cpu` or `cuda`.
        dtype: of weights and inputs: `float32` or `bfloat16`.
        threads: torch's.
        effort: when to stop.
        memory: whether memory is counted as well.
        command: what was typed, for the record.

    Raises:
        ValueError: if something is unknown or not there.
    """

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    effort: Effort = field(default_factory=Effort)
    memory: bool = True
    command: str = ""

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"unknown device {self.device!r}: expected cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("torch sees no CUDA device here: type --device cpu")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}: expected {', '.join(DTYPES)}")
        if self.threads < 1:
            raise ValueError(f"threads must be 1 or more, found {self.threads}")


def measure(
    workload: Workload,
    arms: Sequence[BenchArm],
    setting: Setting,
    *,
    other: Mapping[str, Equip] | None = None,
    other_name: str = "",
    progress: Progress | None = None,
) -> Record:
    """Measures arms on a workload. What cannot be attached is recorded with the reason.

    Args:
        workload: what to train.
        arms: what to attach.
        setting: device, threads and so on.
        other: for an arm's name what else is measured in the same way, such as the same in another package.
        other_name: what that is, for tables.
        progress: told about each measurement.
    """
    progress, rows = progress or Silent(), []
    with _threads(setting.threads), _what_is_there_is_kept():
        bench = _Bench(workload, setting)
        for arm in arms:
            parts = [
                (part, partial(attach, mechanisms=part.mechanisms)) for part in parts_of(arm.mechanisms)
            ]
            progress.start(arm.name)
            measured = bench.measure(parts, ValueError)
            progress.end(arm.name, measured)
            beside = None
            if other and arm.name in other:
                what = f"{arm.name}, {other_name}"
                progress.start(what)
                whole = Part(name="all steps", mechanisms=(), weight=1.0)
                beside = bench.measure([(whole, other[arm.name])], Exception)
                progress.end(what, beside)
            rows.append(
                ArmRecord(
                    name=arm.name,
                    mechanisms=tuple(mechanism.to_dict() for mechanism in arm.mechanisms),
                    budget=arm.budget(workload, setting.device),
                    measured=measured,
                    other=beside,
                )
            )
    return Record(
        workload=workload.name,
        summary=workload.describe(),
        parameters=bench.parameters,
        device=setting.device,
        dtype=setting.dtype,
        threads=setting.threads,
        seconds=setting.effort.seconds,
        precision=setting.effort.precision,
        command=setting.command,
        machine=machine(setting.device),
        other=other_name,
        arms=tuple(rows),
    )


def attach(training: Training, mechanisms: Sequence[Mechanism]) -> int:
    """Attaches mechanisms to a training.

    Returns:
        How many weights they take, of which each counts once.

    Raises:
        ValueError: they cannot act on this model.
    """
    if not mechanisms:
        return 0
    handle = bouton.attach(training.model, training.optimizer, mechanisms, seed=SEED)
    shapes = {key.partition("/")[2]: claim["shape"] for key, claim in handle.state_dict()["claims"].items()}
    return sum(math.prod(shape) for shape in shapes.values())


class _Bench:
    """One workload in one setting."""

    def __init__(self, workload: Workload, setting: Setting) -> None:
        self._setting = setting
        self._start = partial(workload.start, setting.device, DTYPES[setting.dtype])
        self._plain = footprint(self._start, setting.device) if setting.memory else None
        self.parameters = sum(
            parameter.numel() for parameter in self._start().model.parameters() if parameter.requires_grad
        )

    def measure(self, parts: Sequence[tuple[Part, Equip]], expected: type[Exception]) -> Measured:
        """Times all parts and counts their memory; an expected error is the result."""
        try:
            weights = max(equip(self._start()) for _, equip in parts)  # fails before anything is timed
            timed = tuple(self._time(part, equip) for part, equip in parts)
            state, peak = self._memory([equip for _, equip in parts], weights)
        except expected as error:
            return Measured(failed=f"{type(error).__name__}: {error}")
        return Measured(
            parts=timed,
            ratio=estimate([part.ratios for part in timed], [part.weight for part in timed]),
            weights=weights,
            state=state,
            peak=peak,
        )

    def _memory(self, equips: Sequence[Equip], weights: int) -> tuple[float | None, float | None]:
        """Bytes for each weight, held and at the peak; of several parts the most."""
        if not weights or self._plain is None:
            return None, None
        counted = [footprint(partial(self._equipped, equip), self._setting.device) for equip in equips]
        held = max(each.held for each in counted) - self._plain.held
        peak = max(each.peak for each in counted) - self._plain.peak
        return round(held / weights, 3), round(peak / weights, 3)

    def _equipped(self, equip: Equip) -> Training:
        training = self._start()
        equip(training)
        return training

    def _time(self, part: Part, equip: Equip) -> Timed:
        turns = cycle((False, True))

        def copies() -> tuple[Steps, Steps]:
            # which of the two is made first decides where their tensors lie in memory
            if next(turns):
                return (self._equipped(equip).steps, self._start().steps)[::-1]
            return self._start().steps, self._equipped(equip).steps

        pairs = time_pairs(copies, clock_of(self._setting.device), self._setting.effort, part.weight)
        return Timed(
            name=part.name,
            weight=part.weight,
            steps=pairs.steps,
            plain_ms=round(1000 * statistics.median(pairs.plain) / pairs.steps, 4),
            ratios=tuple(pairs.ratios),
        )


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Inside this context torch has so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _what_is_there_is_kept() -> Iterator[None]:
    """Inside this context looking for garbage takes no longer for all that has been imported."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
