"""Timing two trainings side by side: A B B A ..., so that what drifts meets both alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

import torch

from bouton.lab.bench.estimate import estimate

Steps = Callable[[int], None]  # makes so many steps
Clock = Callable[[Steps, int], float]  # how many seconds so many steps take

GROWTH = 1.2  # how many times the pairs are as many when the interval is looked at again


@dataclass(frozen=True, kw_only=True)
class Effort:
    """When to stop.

    Args:
        seconds: the most that the pairs of one measurement may take together.
        precision: the width of the interval at which to stop before that.
        least_pairs: pairs made in any case.
        block: seconds that a block of steps should last at least; what is shorter, the clock and the
            system disturb.
        warm_up: steps of each training before the first pair.

    Raises:
        ValueError: if a number is out of range.
    """

    seconds: float = 20.0
    precision: float = 0.01
    least_pairs: int = 8
    block: float = 0.02
    warm_up: int = 3

    def __post_init__(self) -> None:
        for name in ("seconds", "precision"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, found {getattr(self, name)}")
        if self.least_pairs < 2 or self.warm_up < 1:
            raise ValueError("least_pairs must be 2 or more, and warm_up 1 or more")


@dataclass
class Pairs:
    """What was timed.

    Args:
        steps: in each block.
        plain: seconds of each plain block.
        ratios: for each pair the attached block's time over that of the plain one beside it.
    """

    steps: int
    plain: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)


def wall_clock(steps: Steps, number: int) -> float:
    """On the CPU."""
    start = time.perf_counter()
    steps(number)
    return time.perf_counter() - start


def cuda_clock(steps: Steps, number: int) -> float:
    """On the current CUDA device: from before the first kernel to after the last."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    steps(number)
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000


def clock_of(device: str) -> Clock:
    """The clock that sees what a device does."""
    return cuda_clock if torch.device(device).type == "cuda" else wall_clock


def time_pairs(plain: Steps, attached: Steps, clock: Clock, effort: Effort, weight: float = 1.0) -> Pairs:
    """Times blocks of steps in pairs, in the order A B B A A B B A and so on.

    Args:
        plain: makes plain steps.
        attached: makes steps with mechanisms.
        clock: times either.
        effort: when to stop.
        weight: what the median is multiplied by in the end; the smaller, the earlier is it known.
    """
    with _without_collector():
        for steps in (plain, attached):
            clock(steps, effort.warm_up)
        pairs = Pairs(_steps_of_a_block(plain, clock, effort))
        spent, look = 0.0, effort.least_pairs
        for number in count(1):
            times = {}
            for steps in (plain, attached) if number % 2 else (attached, plain):
                times[steps] = clock(steps, pairs.steps)
            spent += sum(times.values())
            pairs.plain.append(times[plain])
            pairs.ratios.append(round(times[attached] / times[plain], 5))
            if number < effort.least_pairs:
                continue
            if spent >= effort.seconds:
                break
            if number >= look:
                if weight * estimate([pairs.ratios]).width <= effort.precision:
                    break
                look = math.ceil(GROWTH * number)
    return pairs


def _steps_of_a_block(plain: Steps, clock: Clock, effort: Effort) -> int:
    number = 1
    while (seconds := clock(plain, number)) < effort.block:
        # at most tenfold, as the first blocks may be slow ones
        wanted = math.ceil(1.1 * number * effort.block / seconds) if seconds > 0 else 10 * number
        number = min(max(wanted, number + 1), 10 * number)
    return number


@contextmanager
def _without_collector() -> Iterator[None]:
    """Inside this context, Python does not look for garbage when it pleases."""
    gc.collect()
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
