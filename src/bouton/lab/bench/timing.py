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

Copies = Callable[[], tuple[Steps, Steps]]  # makes fresh ones, plain and attached

# Copies of one model differ: the ratio of one pair of copies of the MLP was up to two percent off that of
# the next, for as long as they were timed. So several pairs of copies share the time.
COPIES = 5  # at least, if time allows
SHARE = 0.1  # of the time, for each pair of copies
PAIRS = 4  # of each pair of copies at least


@dataclass(frozen=True, kw_only=True)
class Effort:
    """When to stop.

    Args:
        seconds: the most that the pairs of one measurement may take together.
        precision: the width of the interval at which to stop before that.
        least_pairs: pairs made in any case.
        block: seconds that a block of steps should last at least; what is shorter, the clock and the
            system disturb.
        warm_up: steps of each copy before its first pair.

    Raises:
        ValueError: if a number is out of range.
    """

    seconds: float = 20.0
    precision: float = 0.01
    least_pairs: int = 8
    block: float = 0.02
    warm_up: int = 2

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

    steps: int = 0
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


def time_pairs(copies: Copies, clock: Clock, effort: Effort, weight: float = 1.0) -> Pairs:
    """Times blocks of steps in pairs, in the order A B B A A B B A and so on.

    Args:
        copies: makes what is timed: plain steps, and the same with mechanisms.
        clock: times either.
        effort: when to stop.
        weight: what the median is multiplied by in the end; the smaller, the earlier is it known.
    """
    pairs, spent = Pairs(), 0.0
    with _without_collector():
        for made in count(1):
            spent += _time_copies(pairs, *copies(), clock, effort)
            gc.collect()  # the copies
            if len(pairs.ratios) < effort.least_pairs:
                continue
            enough = made >= COPIES * weight and weight * estimate([pairs.ratios]).width <= effort.precision
            if enough or spent >= effort.seconds:
                break
    return pairs


def _time_copies(pairs: Pairs, plain: Steps, attached: Steps, clock: Clock, effort: Effort) -> float:
    """Adds the pairs of two copies; gives the seconds that they took."""
    for steps in (plain, attached):
        clock(steps, effort.warm_up)
    pairs.steps = pairs.steps or _steps_of_a_block(plain, clock, effort)
    spent, number = 0.0, 0
    while number < PAIRS or spent < SHARE * effort.seconds:
        swapped = number % 2 == 1
        first, second = (attached, plain) if swapped else (plain, attached)
        times = [clock(first, pairs.steps), clock(second, pairs.steps)]
        alone, beside = reversed(times) if swapped else times
        pairs.plain.append(alone)
        pairs.ratios.append(round(beside / alone, 5))
        spent, number = spent + sum(times), number + 1
    return spent


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
