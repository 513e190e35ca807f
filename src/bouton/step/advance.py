"""An optimizer's step on a part of a weight, so that rates act on it while it is in a CPU's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from bouton.step.updates import Settings, View, is_plain, torch_kind


class Advance(NamedTuple):
    """How one kind of optimizer steps a weight part by part, by torch's own functions, to the bit.

    ``is_ready`` says whether it has all that a step of the weight needs. ``part`` steps the synapses of
    which a function gives a view, and ``finish`` counts the step once all were stepped.
    """

    is_ready: Callable[[Optimizer, Settings, Tensor], bool]
    part: Callable[[Optimizer, Settings, Tensor, View], None]
    finish: Callable[[Optimizer, Tensor], None]


def known_advance(optimizer: Optimizer | None) -> Advance | None:
    """How an optimizer steps a part of a weight; None where that is not known, as for any subclass."""
    return _KNOWN.get(torch_kind(optimizer))


def is_undisturbed(optimizer: Optimizer, before: Callable[..., None], after: Callable[..., None]) -> bool:
    """Whether nobody's hooks run between ``before`` and ``after``, which are hooks of the optimizer's step.

    They would find a weight that the optimizer is kept from without a gradient.
    """
    last = next(reversed(optimizer._optimizer_step_pre_hooks.values()), None)
    first = next(iter(optimizer._optimizer_step_post_hooks.values()), None)
    return last == before and first == after


def _adam_is_ready(optimizer: Optimizer, settings: Settings, weight: Tensor) -> bool:
    needed = {"exp_avg", "exp_avg_sq", "step"} | ({"max_exp_avg_sq"} if settings["amsgrad"] else set())
    return is_plain(settings) and needed <= optimizer.state.get(weight, {}).keys()


def _adam_part(optimizer: Optimizer, settings: Settings, weight: Tensor, view: View) -> None:
    state, (first, second) = optimizer.state[weight], settings["betas"]
    assert weight.grad is not None
    adam(
        [view(weight.detach())],
        [view(weight.grad.detach())],
        [view(state["exp_avg"])],
        [view(state["exp_avg_sq"])],
        [view(state["max_exp_avg_sq"])] if settings["amsgrad"] else [],
        [state["step"].clone()],  # which is counted up
        foreach=settings["foreach"],
        fused=settings["fused"],
        decoupled_weight_decay=settings["decoupled_weight_decay"],
        amsgrad=settings["amsgrad"],
        beta1=first,
        beta2=second,
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
        eps=settings["eps"],
        maximize=settings["maximize"],
    )


def _adam_finish(optimizer: Optimizer, weight: Tensor) -> None:
    optimizer.state[weight]["step"] += 1


def _sgd_is_ready(optimizer: Optimizer, settings: Settings, weight: Tensor) -> bool:
    moves = not settings["momentum"]
    return is_plain(settings) and (
        moves or optimizer.state.get(weight, {}).get("momentum_buffer") is not None
    )


def _sgd_part(optimizer: Optimizer, settings: Settings, weight: Tensor, view: View) -> None:
    assert weight.grad is not None
    sgd(
        [view(weight.detach())],
        [view(weight.grad.detach())],
        [view(optimizer.state[weight]["momentum_buffer"]) if settings["momentum"] else None],
        foreach=settings["foreach"],
        fused=settings["fused"],
        weight_decay=settings["weight_decay"],
        momentum=settings["momentum"],
        lr=settings["lr"],
        dampening=settings["dampening"],
        nesterov=settings["nesterov"],
        maximize=settings["maximize"],
    )


def _nothing(optimizer: Optimizer, weight: Tensor) -> None: ...


_KNOWN: dict[type[Optimizer], Advance] = {
    SGD: Advance(_sgd_is_ready, _sgd_part, _nothing),
    Adam: Advance(_adam_is_ready, _adam_part, _adam_finish),
    AdamW: Advance(_adam_is_ready, _adam_part, _adam_finish),
}
