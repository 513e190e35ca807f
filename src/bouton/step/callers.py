"""Who called an optimizer's step: seen by the hooks around it, by a look at the stack."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

from torch.optim import Optimizer


def is_within_step(optimizer: Optimizer) -> bool:
    """Whether the step whose hooks run now was called from within a step of the same optimizer."""
    # torch.optim.Optimizer.profile_hook_step.<locals>.wrapper, which runs the hooks around a step
    steps = [f for f in _callers() if _is_hooked_step(f) and f.f_locals.get("self") is optimizer]
    return len(steps) > 1


def _is_hooked_step(frame: FrameType) -> bool:
    # the name alone is also that of many a decorator's function
    code = frame.f_code
    return code.co_name == "wrapper" and code.co_filename == Optimizer.__init__.__code__.co_filename


def is_rehearsal() -> bool:
    """Whether the step is none: one with zero gradients and a learning rate of 0, for the state it makes.

    ``torch.distributed.checkpoint.state_dict`` makes such steps of optimizers that have no state.
    """
    helpers = sys.modules.get("torch.distributed.checkpoint.state_dict")
    if helpers is None:
        return False
    return any(frame.f_code is helpers._init_optim_state.__code__ for frame in _callers())


def _callers() -> Iterator[FrameType]:
    frame = sys._getframe(1)
    while frame.f_back:
        frame = frame.f_back
        yield frame
