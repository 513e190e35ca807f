"""Make an optimizer forget what it knew of some entries of a weight."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from bouton.tensors.bitmask import clear_where
from bouton.tensors.scratch import row_pieces
from bouton.tensors.shards import local, spread, whole


def fresh_moments(optimizer: Optimizer, weight: Tensor) -> dict[str, float | None]:
    """The value that each per-entry state of ``optimizer`` has for a weight that never moved.

    None for state that entries share, such as Adafactor's row and column means.

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
    accepted = _accepted(type(optimizer)) & optimizer.defaults.keys()
    try:
        probe = type(optimizer)(
            [{**settings, "params": [stand_in]}], **{name: optimizer.defaults[name] for name in accepted}
        )
        probe.step()
    except Exception as error:
        raise ValueError(
            f"cannot find out what state {type(optimizer).__name__} gives to a fresh weight ({error}); "
            "turn this off with reset_moments=False"
        ) from error
    return {
        name: value.flatten()[0].item() if value.shape == stand_in.shape else None
        for name, value in probe.state[stand_in].items()
        if isinstance(value, Tensor) and value.ndim > 0
    }


def reset_moments(
    optimizer: Optimizer, weight: Tensor, changed: Tensor, fresh: dict[str, float | None]
) -> None:
    """Set the state of the ``changed`` entries of ``weight`` to ``fresh``.

    State that is shared between entries, such as Adafactor's row and column means, stays: there is no
    part of it that belongs to one entry.

    Raises:
        ValueError: the weight has a state per entry whose fresh value is not known.
    """
    if isinstance(optimizer, LBFGS):
        # Its history is of the whole weight vector, and no pair of it is true after a jump. LBFGS
        # itself waits for the device many times a step, so that looking costs nothing more.
        if bool(whole(changed.any())):
            optimizer.state.clear()
        return
    state = optimizer.state.get(weight, {})
    own = {name: value for name, value in state.items() if getattr(value, "shape", ()) == weight.shape}
    if own.keys() - fresh.keys():
        fresh.update(fresh_moments(optimizer, weight))  # momentum, say, was turned on since attach
    for name, value in own.items():
        if name not in fresh:
            raise ValueError(
                f"cannot find out what {name} {type(optimizer).__name__} gives to a fresh weight; turn "
                "this off with reset_moments=False"
            )
        if (initial := fresh[name]) is not None:
            _fill(local(value), local(spread(changed, value)), initial)


def _fill(state: Tensor, changed: Tensor, initial: float) -> None:
    for rows in row_pieces(state) if initial == 0 else ():
        clear_where(changed[rows], state[rows])
    if initial != 0:
        state.masked_fill_(changed, initial)


def _accepted(kind: type[Optimizer]) -> set[str]:
    """What the constructor takes, by name; an optimizer's defaults also hold what its parents add."""
    names: set[str] = set()
    for parent in kind.__mro__:
        if "__init__" in parent.__dict__:
            parameters = inspect.signature(parent.__dict__["__init__"]).parameters
            names |= parameters.keys()
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                break  # otherwise it may hand them on to its parent
    return names
