"""Groups of nodes that act as one: their sums, and what is the same for all members, with derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bouton.native import outputs as native
from bouton.passes.modulation import transforming
from bouton.tensors.precision import wide

Factors = Callable[[], Tensor | None] | None  # asked in the backward pass


def pool(output: Tensor, gamma: int, axis: int) -> Tensor:
    """The sum over each ``gamma`` consecutive nodes, at the place of each of them.

    ``axis`` holds the nodes and counts from the end. The result has the memory format of ``output``.
    Autograd would sum along a short axis, which is slow, and lose the memory format.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state():  # graphs of torch's operations alone
        members = output.unflatten(axis, (-1, gamma))
        pooled: Tensor = members.sum(axis, keepdim=True).expand_as(members).flatten(axis - 1, axis)
        return pooled
    # torch.func asks for another form of function, whose call takes three times as long
    kind = _PoolUnderTransforms if transforming() else _Pool
    pooled = kind.apply(output, gamma, axis)  # type: ignore[no-untyped-call]
    return pooled


def sum_members(
    values: Tensor, gamma: int, axis: int, factors: Tensor | None = None, pulled: Factors = None
) -> Tensor:
    """The sum over each ``gamma`` consecutive entries of an axis, outside of torch.func and of graphs.

    ``factors``, one for each member, are those of its terms; ``pulled`` those of its derivative.
    """
    if not _again():
        return summed(values, gamma, axis, factors)
    totals: Sequence[Tensor]
    totals = _Sum.apply(gamma, (axis,), factors, pulled, values)  # type: ignore[no-untyped-call]
    return totals[0]


def sum_nodes(weights: Sequence[Tensor], gamma: int, pulled: Factors = None) -> Sequence[Tensor]:
    """:func:`sum_members` over the first axis of each tensor, in one call, which takes longer than sums."""
    axes = [-weight.ndim for weight in weights]
    sums: Sequence[Tensor] = _applied(_Sum, gamma, axes, None, pulled, *weights)
    return sums


def repeat_nodes(output: Tensor, gamma: int, axis: int) -> Tensor:
    """:func:`repeat` of what a layer has made of such sums."""
    every: Tensor = _applied(_Repeat, output, gamma, axis, None)
    return every


def _applied(kind: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``kind.apply`` without what that does for torch.func, which takes as long as the function itself."""
    return super(torch.autograd.Function, kind).apply(*arguments)  # type: ignore[misc]


def repeat(values: Tensor, gamma: int, axis: int, factors: Tensor | None = None) -> Tensor:
    """Each entry of an axis ``gamma`` times, one after another, outside of torch.func and of graphs.

    ``factors`` has one for each of all entries.
    """
    if not _again():
        return repeated(values, gamma, axis, factors)
    every: Tensor = _Repeat.apply(values, gamma, axis, factors)  # type: ignore[no-untyped-call]
    return every


def _pooled(output: Tensor, gamma: int, axis: int) -> Tensor:
    found = native.pool(output, gamma, axis)
    if found is not None:
        return found
    pooled = torch.empty_like(output)
    sums = summed(output, gamma, axis).unsqueeze(output.ndim + axis + 1)
    pooled.unflatten(axis, (-1, gamma)).copy_(sums)
    return pooled


def summed(values: Tensor, gamma: int, axis: int, factors: Tensor | None = None) -> Tensor:
    """:func:`sum_members` without a derivative."""
    found = native.summed(values, gamma, axis, factors)
    if found is not None:
        return found
    if factors is not None:
        values = values * factors.reshape(-1, *[1] * (values.ndim - 1))
    # [..., node / gamma, gamma, ...], and of that one member after another
    members = values.unflatten(axis, (-1, gamma)).unbind(axis)
    if gamma > 2:  # 16 bits would round every partial sum
        members = tuple(member.to(wide(values.dtype)) for member in members)
    total: Tensor = members[0] + members[1] if gamma > 1 else members[0].clone()
    for member in members[2:]:
        total.add_(member)
    return total.to(values.dtype)


_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def repeated(values: Tensor, gamma: int, axis: int, factors: Tensor | None = None) -> Tensor:
    """:func:`repeat` without a derivative."""
    found = native.repeated(values, gamma, axis, factors)
    if found is not None:
        return found
    shape, layout = list(values.shape), _FORMATS.get(values.ndim, torch.contiguous_format)
    shape[axis] *= gamma
    if not values.is_contiguous(memory_format=layout):
        layout = torch.contiguous_format
    made = torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=layout)
    made.unflatten(axis, (-1, gamma)).copy_(values.unsqueeze(values.ndim + axis + 1))
    if factors is not None:
        made.mul_(factors.reshape(-1, *[1] * (values.ndim - 1)))
    return made


def _again() -> bool:
    """Whether what is done now is to be differentiated; in a backward pass, whether a second time."""
    return torch.is_grad_enabled() or transforming()


class _Pool(torch.autograd.Function):
    """The sum over each group of nodes, at each of its members; its own transpose."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, gamma: int, axis: int) -> Tensor:
        ctx.gamma, ctx.axis = gamma, axis
        return _pooled(output, gamma, axis)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, None, None]:
        return (pool if _again() else _pooled)(error, ctx.gamma, ctx.axis), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return pool(tangent, ctx.gamma, ctx.axis)


class _PoolUnderTransforms(_Pool):
    @staticmethod
    def forward(output: Tensor, gamma: int, axis: int) -> Tensor:  # type: ignore[override]
        return _pooled(output, gamma, axis)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
        _, ctx.gamma, ctx.axis = inputs

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int, None, None], output: Tensor, gamma: int, axis: int
    ) -> tuple[Tensor, int]:
        return pool(output.movedim(in_dims[0], 0), gamma, axis), 0  # the axis counts from the end


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gamma: int, axes: Sequence[int], factors: Tensor | None, pulled: Factors, *values: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.gamma, ctx.axes, ctx.pulled = gamma, axes, pulled
        sums = [summed(value, gamma, axis, factors) for value, axis in zip(values, axes, strict=True)]
        if not all(ctx.needs_input_grad[4:]):
            frozen = [made for made, value in zip(sums, values, strict=True) if not value.requires_grad]
            ctx.mark_non_differentiable(*frozen)
        return tuple(sums)

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, ...]:
        factors = ctx.pulled() if ctx.pulled else None
        asked = zip(errors, ctx.axes, ctx.needs_input_grad[4:], strict=True)
        made = [
            repeat(error, ctx.gamma, axis, factors) if needed else None for error, axis, needed in asked
        ]
        return None, None, None, None, *made


class _Repeat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, gamma: int, axis: int, factors: Tensor | None) -> Tensor:
        ctx.gamma, ctx.axis, ctx.factors = gamma, axis, factors
        return repeated(values, gamma, axis, factors)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, None, None, None]:
        return sum_members(error, ctx.gamma, ctx.axis, ctx.factors, lambda: ctx.factors), None, None, None
