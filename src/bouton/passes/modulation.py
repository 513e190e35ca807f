"""The error site: multiply the error that comes back to a layer's output, under torch.func as well."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bouton.switch import Switch

_FORWARD = (
    "{} acts on errors on their way back through the model, and forward-mode differentiation (jvp, jacfwd, "
    "hessian, dual tensors) has none; use reverse mode (grad, vjp, jacrev), or handle.paused() for the "
    "plain derivative"
)
_COMPILED = (
    "{} modulates no error inside a graph that has torch.func's transforms in it; compile without "
    "fullgraph=True, or take the derivatives outside of what is compiled"
)


# Whether a torch.func transform (grad, vmap, jvp, ...) is at work.
transforming: Callable[[], bool] = torch._C._are_functorch_transforms_active


def refuse_forward_mode(tensor: Tensor, name: str) -> None:
    """Refuse a tensor with a tangent, which is how forward mode works outside of torch.func.

    Raises:
        ValueError: it has one; ``name`` says what cannot act there.
    """
    if forward_ad._current_level < 0 or torch.compiler.is_compiling():
        return  # no level of forward mode is open
    if forward_ad.unpack_dual(tensor).tangent is not None:
        raise ValueError(_FORWARD.format(name))


def awaits_error(output: Tensor, name: str) -> bool:
    """Whether an error may come back to ``output``.

    Raises:
        ValueError: it takes part in forward-mode differentiation; ``name`` says what cannot act there.
    """
    if forward_ad._current_level >= 0 and not transforming():
        refuse_forward_mode(output, name)
    return output.requires_grad or transforming()  # vmap hides what requires a gradient


def modulate(output: Tensor, factor: Tensor, switch: Switch, name: str) -> Tensor:
    """``output``, with every error that comes to it multiplied by ``factor`` while ``switch`` is on.

    A hook on the tensor works with in-place activations, and fires once under checkpointing. It acts at one
    level of differentiation: torch.func, which nests them, needs a function of autograd, at a copy's cost.
    So does torch.compile, which beside a hook loses what a module sets in its forward pass.

    ``output`` awaits an error, and ``name`` is that of what modulates it.
    """
    compiling = torch.compiler.is_dynamo_compiling()  # and exports, which have no errors, do not come here
    if transforming():
        if compiling:
            raise ValueError(
                _COMPILED.format(name)
            )  # with fullgraph=True; otherwise torch runs it uncompiled
        return cast(Tensor, _Modulated.apply(output, factor, switch, name))  # type: ignore[no-untyped-call]
    if compiling:
        return cast(Tensor, _ModulatedInGraph.apply(output, factor))  # type: ignore[no-untyped-call]
    output.register_hook(partial(_modulated, factor, switch))
    return output


def _modulated(factor: Tensor, switch: Switch, error: Tensor) -> Tensor:
    return error * factor if switch.on else error


class _ModulatedInGraph(torch.autograd.Function):
    """The identity, whose error is multiplied, as torch.compile can trace it."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return output.clone()  # compiled away; a view could not be changed in place

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return error * factor, None


class _Modulated(torch.autograd.Function):
    """The identity, whose error is multiplied at every level of torch.func's transforms."""

    @staticmethod
    def forward(output: Tensor, factor: Tensor, switch: Switch, name: str) -> Tensor:
        return output.clone()  # an in-place activation may follow, which a view would not take

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Switch, str], output: Tensor) -> None:
        _, factor, ctx.switch, ctx.name = inputs
        ctx.save_for_backward(factor)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, None, None, None]:
        (factor,) = ctx.saved_tensors
        return _modulated(factor, ctx.switch, error), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        raise ValueError(_FORWARD.format(ctx.name))

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, int | None, None, None],
        output: Tensor,
        factor: Tensor,
        switch: Switch,
        name: str,
    ) -> tuple[Tensor, int]:
        """Map over the first axis: of the outputs, and in an ensemble of the factors."""
        outputs, factors = in_dims[:2]
        if outputs is None:
            output, outputs = output.expand(info.batch_size, *output.shape), 0
        output = output.movedim(outputs, 0)
        if factors is not None:
            factor = factor.movedim(factors, 0)
            factor = factor.unflatten(0, (-1, *[1] * (output.ndim - factor.ndim)))
        return _Modulated.apply(output, factor, switch, name), 0  # type: ignore[no-untyped-call]
