"""Steps that a gradient scaler lets a fused optimizer skip on the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Counts(NamedTuple):
    """What a claim counts on the host: optimizer steps, events of a structure rule, random draws."""

    steps: int
    events: int
    draws: int

    def since(self, earlier: Counts) -> Counts:
        """What was added since ``earlier``."""
        return Counts(*(now - before for now, before in zip(self, earlier, strict=True)))


class Verdict:
    """Whether a step was skipped: on its way from the device, to be read when the next step begins.

    Reading it at once would make the host wait for the device in every step. One step later the copy has
    long arrived, or the device has that whole step left to do.
    """

    def __init__(self, found_inf: Tensor) -> None:
        self._arrived = None
        if found_inf.is_cuda:
            self._flag = found_inf.to("cpu", non_blocking=True)  # into pinned memory
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(found_inf.device))
        else:
            self._flag = found_inf.clone()

    @property
    def skipped(self) -> bool:
        """True if the step was none; waits until that is known."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._flag)
