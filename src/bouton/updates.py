"""What an optimizer has just added to a weight, told from its own state instead of a copy of the weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from bouton.sites import Deviation

View = Callable[[Tensor], Tensor]
Rescale = Callable[[View, Deviation], None]

_PRECISE = (torch.float32, torch.float64)  # in 16 bits, what was added differs from what was to be added


def known_update(optimizer: Optimizer, weight: Tensor, settings: dict[str, Any]) -> Rescale | None:
    """How to scale the update that ``optimizer`` made of ``weight`` last; None where only a copy can tell.

    The function that is returned adds to some synapses the deviation of their rates times their update. It
    takes that deviation, and a function that gives a view of these synapses in a tensor of the weight's
    shape. ``settings`` is the weight's parameter group.

    SGD without weight decay or with momentum, Adam and AdamW are known, and subclasses are not, whose steps
    may do more.
    """
    describe = _KNOWN.get(type(optimizer))
    if describe is None or weight.dtype not in _PRECISE or settings["differentiable"]:
        return None
    # a learning rate or a step count on a device would have to be waited for
    if settings["fused"] or settings.get("capturable") or isinstance(settings["lr"], Tensor):
        return None
    return describe(optimizer, weight, settings)


def _sgd(optimizer: Optimizer, weight: Tensor, settings: dict[str, Any]) -> Rescale | None:
    momentum, rate = settings["momentum"], settings["lr"]
    if settings["nesterov"] or (settings["weight_decay"] and not momentum):
        return None

    def rescale(view: View, deviation: Deviation) -> None:
        direction, size = weight.grad, rate if settings["maximize"] else -rate
        if momentum:
            direction, size = optimizer.state[weight]["momentum_buffer"], -rate
        assert direction is not None  # or there is no update
        view(weight).addcmul_(view(direction), deviation.values, value=size * deviation.scale)

    return rescale


def _adam(optimizer: Optimizer, weight: Tensor, settings: dict[str, Any]) -> Rescale | None:
    if settings["amsgrad"]:
        return None
    decoupled = type(optimizer) is AdamW or settings.get("decoupled_weight_decay", False)
    (first, second), rate = settings["betas"], settings["lr"]
    decay = rate * settings["weight_decay"] if decoupled else 0.0
    if decay >= 1:
        return None

    def rescale(view: View, deviation: Deviation) -> None:
        state, synapses = optimizer.state[weight], view(weight)
        step = state["step"].item()  # on the CPU, where it is not capturable
        size = -rate / (1 - first**step) / (1 - decay)
        # w' = (1 - decay) w + u, so that w' - w = (u - decay w') / (1 - decay), with u = size m / denominator
        denominator = view(state["exp_avg_sq"]).sqrt().div_((1 - second**step) ** 0.5)
        update = torch.div(view(state["exp_avg"]), denominator.add_(settings["eps"]), out=denominator)
        if decay:
            update.mul_(size).add_(synapses, alpha=-decay / (1 - decay))
            size = 1.0
        synapses.addcmul_(update, deviation.values, value=size * deviation.scale)

    return rescale


_KNOWN: dict[type[Optimizer], Callable[[Optimizer, Tensor, dict[str, Any]], Rescale | None]] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
}
