"""What a training keeps in memory, counted exactly: every tensor that is made and given back.

The resident memory of a process would be the nearer number, but tells of the allocator's pages, not of
bytes: at 270 000 weights its noise is several bytes per weight.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch.autograd.profiler import profile

from bouton.lab.bench.workloads import Training

STEPS = 2  # the first makes the optimizer's state; after that all are alike
_EVENT = "[memory]"  # torch's name of an allocation (positive) or a release (negative)
_ANNOUNCEMENT = b"SyncActivityProfilerHandler"


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of tensors.

    Args:
        held: there between two steps: weights, gradients, states.
        peak: the most that was there at any time.
    """

    held: int
    peak: int


def footprint(start: Callable[[], Training], device: str = "cpu") -> Footprint:
    """Makes a training and some steps of it, and counts.

    Args:
        start: makes the training, which is all that is counted.
        device: where.

    Example:
        >>> from bouton.lab.bench.workloads import named
        >>> mlp = footprint(named("mlp").start)
        >>> mlp.held > 3 * 4 * 269322  # weights, gradients, momentum
        True
    """
    gc.collect()
    return _on_cuda(start) if torch.device(device).type == "cuda" else _on_cpu(start)


def _on_cpu(start: Callable[[], Training]) -> Footprint:
    with _without_announcement(), profile(profile_memory=True) as profiler:
        training = start()
        training.steps(STEPS)
        gc.collect()
    events = (event for event in profiler.kineto_results.events() if event.name() == _EVENT)
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    totals = list(accumulate(changes, initial=0))
    return Footprint(held=totals[-1], peak=max(totals))


def _on_cuda(start: Callable[[], Training]) -> Footprint:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    training = start()
    training.steps(STEPS)
    gc.collect()
    torch.cuda.synchronize()
    return Footprint(
        held=torch.cuda.memory_allocated() - before, peak=torch.cuda.max_memory_allocated() - before
    )


@contextmanager
def _without_announcement() -> Iterator[None]:
    """Inside this context the profiler does not tell the terminal when it starts and stops.

    It writes to the process's standard error from C++, and no setting keeps it from that; anything else
    that is written there comes out in the end.
    """
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            for line in caught:
                if _ANNOUNCEMENT not in line:
                    os.write(2, line)
