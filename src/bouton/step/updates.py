"""What an optimizer has just added to a weight, told from its own state instead of a copy of the weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from bouton.tensors.scratch import scratch

View = Callable[[Tensor], Tensor]
Settings = dict[str, Any]  # an optimizer's parameter group


class Update(NamedTuple):
    """What was added to some synapses: ``size * direction``."""

    direction: Tensor
    size: float


class KnownUpdate(NamedTuple):
    """How the updates of one kind of optimizer are told.

    ``is_told`` says whether the state tells the update under these settings. ``last`` tells the last one;
    it takes the optimizer, the settings, the weight, and a function that gives a view of the wanted
    synapses in a tensor of the weight's shape. What it returns is good until it is called again.
    """

    is_told: Callable[[Settings], bool]
    last: Callable[[Optimizer, Settings, Tensor, View], Update]


def known_update(optimizer: Optimizer | None) -> KnownUpdate | None:
    """How an optimizer's updates are told; None where only copies of the weights can tell them.

    SGD, Adam and AdamW are known. Subclasses of them are not, whose steps may do more.
    """
    return _KNOWN.get(torch_kind(optimizer))


def torch_kind(optimizer: Optimizer | None) -> type[Any]:
    """The class whose step an optimizer makes: its own, or for those of bouton.fused torch's.

    These are torch's but for weights that they scale themselves. Subclasses of them may do more.
    """
    kind: type[Any] = type(optimizer)
    return vars(kind).get("torch_optimizer", kind)  # type: ignore[no-any-return]


def is_plain(settings: Settings) -> bool:
    """Whether a step under these settings is made of plain operations, with numbers that the host knows."""
    # a learning rate or a step count on a device would have to be waited for
    kept = settings["fused"] or settings["differentiable"] or settings.get("capturable")
    return not (kept or isinstance(settings["lr"], Tensor))


def _sgd_tells(settings: Settings) -> bool:
    decays = settings["weight_decay"] and not settings["momentum"]
    return is_plain(settings) and not (decays or settings["nesterov"])


def _last_of_sgd(optimizer: Optimizer, settings: Settings, weight: Tensor, view: View) -> Update:
    if settings["momentum"]:
        return Update(view(optimizer.state[weight]["momentum_buffer"]), -settings["lr"])
    assert weight.grad is not None  # or there is no update
    return Update(view(weight.grad.detach()), settings["lr"] if settings["maximize"] else -settings["lr"])


def _adam_tells(settings: Settings) -> bool:
    return is_plain(settings) and not settings["amsgrad"] and _decay(settings) < 1


def _decay(settings: Settings) -> float:
    return settings["lr"] * settings["weight_decay"] if settings["decoupled_weight_decay"] else 0.0


def _last_of_adam(optimizer: Optimizer, settings: Settings, weight: Tensor, view: View) -> Update:
    state, decay, (first, second) = optimizer.state[weight], _decay(settings), settings["betas"]
    mean, square = view(state["exp_avg"]), view(state["exp_avg_sq"])
    step = state["step"].item()  # on the CPU, where it is not capturable
    # With c the decay, w' = (1 - c) w + u, so that w' - w = (u - c w') / (1 - c), where
    # u = size m / (sqrt(v) + root eps).
    root = (1 - second**step) ** 0.5
    size = -settings["lr"] * root / (1 - first**step)
    if size == 0:
        return Update(mean, 0.0)
    direction = torch.sqrt(square, out=scratch("update", square)).add_(settings["eps"] * root)
    torch.div(mean, direction, out=direction)
    if decay:
        direction.add_(view(weight.detach()), alpha=-decay / size)
    return Update(direction, size / (1 - decay))


_KNOWN: dict[type[Optimizer], KnownUpdate] = {
    SGD: KnownUpdate(_sgd_tells, _last_of_sgd),
    Adam: KnownUpdate(_adam_tells, _last_of_adam),
    AdamW: KnownUpdate(_adam_tells, _last_of_adam),
}
