"""What an optimizer has just added to a weight, told from its own state instead of a copy of the weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from bouton.sites import Deviation

View = Callable[[Tensor], Tensor]
Settings = dict[str, Any]  # an optimizer's parameter group


class KnownUpdate(NamedTuple):
    """How to scale the updates of one kind of optimizer.

    ``is_told`` says whether the state tells the update under these settings. ``rescale`` adds to synapses
    the deviation of their rates times the update that was made of them; it takes the optimizer, the
    settings, the weight, a function that gives a view of the synapses in a tensor of the weight's shape,
    and the deviation.
    """

    is_told: Callable[[Settings], bool]
    rescale: Callable[[Optimizer, Settings, Tensor, View, Deviation], None]


def known_update(optimizer: Optimizer | None) -> KnownUpdate | None:
    """How to scale the updates of an optimizer; None where only copies of the weights can tell them.

    SGD, Adam and AdamW are known. Subclasses of them are not, whose steps may do more.
    """
    # those of bouton.fused are torch's but for weights that they scale themselves
    kind: type[Any] = getattr(optimizer, "torch_optimizer", type(optimizer))
    return _KNOWN.get(kind)


def is_precise(weight: Tensor) -> bool:
    """Whether what was added to a weight is what was to be added: in 16 bits it is not."""
    return weight.dtype in (torch.float32, torch.float64)


def _is_plain(settings: Settings) -> bool:
    # a learning rate or a step count on a device would have to be waited for
    kept = settings["fused"] or settings["differentiable"] or settings.get("capturable")
    return not (kept or isinstance(settings["lr"], Tensor))


def _sgd_tells(settings: Settings) -> bool:
    decays = settings["weight_decay"] and not settings["momentum"]
    return _is_plain(settings) and not (decays or settings["nesterov"])


def _rescale_sgd(
    optimizer: Optimizer, settings: Settings, weight: Tensor, view: View, deviation: Deviation
) -> None:
    size = -settings["lr"] * deviation.scale
    if settings["momentum"]:
        direction = optimizer.state[weight]["momentum_buffer"]
    else:
        direction, size = weight.grad, -size if settings["maximize"] else size
    view(weight).addcmul_(view(direction), deviation.values, value=size)


def _adam_tells(settings: Settings) -> bool:
    return _is_plain(settings) and not settings["amsgrad"] and _decay(settings) < 1


def _decay(settings: Settings) -> float:
    return settings["lr"] * settings["weight_decay"] if settings["decoupled_weight_decay"] else 0.0


def _rescale_adam(
    optimizer: Optimizer, settings: Settings, weight: Tensor, view: View, deviation: Deviation
) -> None:
    state, synapses, decay = optimizer.state[weight], view(weight), _decay(settings)
    (first, second), step = settings["betas"], state["step"].item()  # on the CPU, where not capturable
    # With c the decay, w' = (1 - c) w + u, so that w' - w = (u - c w') / (1 - c), where
    # u = size m / (sqrt(v) + root eps).
    root = (1 - second**step) ** 0.5
    size = -settings["lr"] * root / (1 - first**step)
    if size == 0:
        return
    denominator = view(state["exp_avg_sq"]).sqrt().add_(settings["eps"] * root)
    update = torch.div(view(state["exp_avg"]), denominator, out=denominator)
    if decay:
        update.add_(synapses, alpha=-decay / size)
    synapses.addcmul_(update, deviation.values, value=size / (1 - decay) * deviation.scale)


_KNOWN: dict[type[Optimizer], KnownUpdate] = {
    SGD: KnownUpdate(_sgd_tells, _rescale_sgd),
    Adam: KnownUpdate(_adam_tells, _rescale_adam),
    AdamW: KnownUpdate(_adam_tells, _rescale_adam),
}
