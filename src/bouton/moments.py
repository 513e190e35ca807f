"""Make an optimizer forget what it knew of some entries of a weight."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer


def fresh_moments(optimizer: Optimizer, weight: Tensor) -> dict[str, float]:
    """The value that each per-entry state of ``optimizer`` has for a weight that never moved.

    Not every optimizer starts at zero (Adagrad's sum, Rprop's step size), so the optimizer itself is
    asked: a new one of its kind makes one step on a stand-in for ``weight`` with a zero gradient.

    Raises:
        ValueError: the optimizer cannot be made anew, or cannot make such a step.
    """
    if isinstance(optimizer, LBFGS):
        return {}
    settings = next(group for group in optimizer.param_groups if any(p is weight for p in group["params"]))
    # Two per axis: a state of the stand-in's shape cannot be taken for a scalar or a factored one.
    stand_in = torch.zeros([2] * weight.ndim, dtype=weight.dtype, device=weight.device)
    stand_in.grad = torch.zeros_like(stand_in)
    kind = type(optimizer)
    # A group also holds what schedulers and parent classes add, which the constructor does not take.
    accepted = inspect.signature(kind).parameters.keys() & settings.keys() - {"params"}
    try:
        probe = kind([stand_in], **{name: settings[name] for name in accepted})
        probe.step()
    except Exception as error:
        raise ValueError(
            f"cannot find out what state {kind.__name__} gives to a fresh weight ({error}); turn this off "
            "with reset_moments=False"
        ) from error
    return {
        name: value.flatten()[0].item()
        for name, value in probe.state[stand_in].items()
        if isinstance(value, Tensor) and value.shape == stand_in.shape
    }


def reset_moments(optimizer: Optimizer, weight: Tensor, changed: Tensor, fresh: dict[str, float]) -> None:
    """Set the state of the ``changed`` entries of ``weight`` to ``fresh``.

    State that is shared between entries, such as Adafactor's row and column means, stays: there is no
    part of it that belongs to one entry.
    """
    if isinstance(optimizer, LBFGS):
        # Its history is of the whole weight vector, and no pair of it is true after a jump. LBFGS
        # itself waits for the device many times a step, so that looking costs nothing more.
        if bool(changed.any()):
            optimizer.state.clear()
        return
    for name, value in optimizer.state.get(weight, {}).items():
        if name in fresh and value is not None and value.shape == weight.shape:
            value.masked_fill_(changed, fresh[name])
