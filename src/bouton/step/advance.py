"""An optimizer's step on a part of a weight, so that rates act on it while it is in a CPU's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from bouton.native.steps import SgdStep, is_torchs
from bouton.sites import Deviation
from bouton.step.place import Place
from bouton.step.updates import Settings, View, is_plain, torch_kind


class Advance(Protocol):
    """How one kind of optimizer steps a weight, as torch does to the bit."""

    def ready(self, optimizer: Optimizer, place: Place, weight: Tensor, in_pieces: bool) -> Settings | None:
        """The settings of the weight, if its step can be made here: ``in_pieces``, or in one pass."""
        ...

    def part(self, optimizer: Optimizer, settings: Settings, weight: Tensor, view: View) -> None:
        """Step the synapses of which a function gives a view, by torch's own functions."""
        ...

    def finish(self, optimizer: Optimizer, weight: Tensor) -> None:
        """Count the step, once all synapses were stepped."""

    def scaled(
        self,
        optimizer: Optimizer,
        settings: Settings,
        weight: Tensor,
        view: View | None,
        rates: Deviation,
    ) -> bool:
        """Step and scale synapses in one pass, all of them without a ``view``; False where it cannot."""
        return False


def known_advance(optimizer: Optimizer | None) -> Advance | None:
    """How an optimizer steps one weight; None where that is not known, as for any subclass."""
    kind = _KNOWN.get(torch_kind(optimizer))
    return None if kind is None else kind()


def is_undisturbed(optimizer: Optimizer, before: Callable[..., None], after: Callable[..., None]) -> bool:
    """Whether nobody sees that the optimizer is kept from weights between two hooks of its step.

    Hooks of others would find no gradient, and torch steps weights in another way if all of those that are
    left are on a device.
    """
    last = next(reversed(optimizer._optimizer_step_pre_hooks.values()), None)
    first = next(iter(optimizer._optimizer_step_post_hooks.values()), None)
    if last != before or first != after:
        return False
    for settings in optimizer.param_groups:
        for weight in settings["params"]:
            if not weight.is_cpu:
                return False
    return True


class _Adam(Advance):
    def ready(self, optimizer: Optimizer, place: Place, weight: Tensor, in_pieces: bool) -> Settings | None:
        if not in_pieces:
            return None
        settings = place.settings(optimizer)
        needed = {"exp_avg", "exp_avg_sq", "step"} | ({"max_exp_avg_sq"} if settings["amsgrad"] else set())
        has_all = place.is_only and needed <= optimizer.state.get(weight, {}).keys()
        return settings if has_all and is_plain(settings) else None

    def part(self, optimizer: Optimizer, settings: Settings, weight: Tensor, view: View) -> None:
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

    def finish(self, optimizer: Optimizer, weight: Tensor) -> None:
        optimizer.state[weight]["step"] += 1


_NOTHING: dict[str, Tensor] = {}


class _Sgd(Advance):
    def __init__(self) -> None:
        self._step = SgdStep()
        self._agrees = False

    def ready(self, optimizer: Optimizer, place: Place, weight: Tensor, in_pieces: bool) -> Settings | None:
        self._agrees = self._agrees or is_torchs()  # asked in each step, and answered once
        if not in_pieces and not (self._agrees and weight.dtype is torch.float32):
            return None
        settings = place.settings(optimizer)
        if settings["momentum"] and optimizer.state.get(weight, _NOTHING).get("momentum_buffer") is None:
            return None
        return settings if place.is_only and is_plain(settings) else None

    def part(self, optimizer: Optimizer, settings: Settings, weight: Tensor, view: View) -> None:
        buffer = optimizer.state[weight]["momentum_buffer"] if settings["momentum"] else None
        assert weight.grad is not None
        sgd(
            [view(weight.detach())],
            [view(weight.grad.detach())],
            [None if buffer is None else view(buffer)],
            foreach=settings["foreach"],
            fused=settings["fused"],
            weight_decay=settings["weight_decay"],
            momentum=settings["momentum"],
            lr=settings["lr"],
            dampening=settings["dampening"],
            nesterov=settings["nesterov"],
            maximize=settings["maximize"],
        )

    def scaled(
        self,
        optimizer: Optimizer,
        settings: Settings,
        weight: Tensor,
        view: View | None,
        rates: Deviation,
    ) -> bool:
        gradient = weight.grad
        buffer = optimizer.state[weight]["momentum_buffer"] if settings["momentum"] else None
        if view is not None:
            weight, gradient = view(weight), None if gradient is None else view(gradient)
            buffer = None if buffer is None else view(buffer)
        if not (self._agrees and self._step(weight, gradient, buffer, rates, settings)):
            return False
        increment_version(weight)  # which torch does where it writes itself
        return True


_KNOWN: dict[type[Optimizer], Callable[[], Advance]] = {SGD: _Sgd, Adam: _Adam, AdamW: _Adam}
