"""What is done to a layer's outputs; None or False where the loops cannot serve."""

from __future__ import annotations

import torch
from torch import Tensor

from bouton.native.ready import are_plain, ready


def count_beyond(output: Tensor, axis: int, size: float, counts: Tensor) -> bool:
    """Add to ``counts`` in float64 how many outputs of each node, on ``axis``, are beyond a size."""
    if (loops := ready(output)) is None or not are_plain((counts,), torch.float64):
        return False
    nodes, inner = output.shape[axis], output.shape[output.ndim + axis + 1 :].numel()
    if counts.shape != (nodes,):
        return False
    outer = output.numel() // (nodes * inner) if nodes * inner else 0
    threads = torch.get_num_threads()
    loops.count_beyond(output.data_ptr(), outer, nodes, inner, size, counts.data_ptr(), threads)
    return True


def activity(active: Tensor, since: Tensor, factors: Tensor) -> bool:
    """Add to counts of activity in float64; ``factors`` become what they make of nodes' deviations."""
    if (loops := ready(active, since, dtype=torch.float64)) is None or not are_plain(
        (factors,), torch.float32
    ):
        return False
    if not active.numel() == since.numel() == factors.numel():
        return False
    loops.activity(active.data_ptr(), since.data_ptr(), factors.data_ptr(), active.numel())
    return True


def pool(output: Tensor, gamma: int, axis: int) -> Tensor | None:
    """The sum of each ``gamma`` neighbours on an axis, at the place of each of them."""
    if gamma < 2 or output.shape[axis] % gamma or (loops := ready(output)) is None:
        return None
    pooled, inner = torch.empty_like(output), _behind(output, axis)
    groups = output.numel() // (gamma * inner or 1)
    loops.pool(output.data_ptr(), groups, gamma, inner, pooled.data_ptr(), torch.get_num_threads())
    return pooled


def summed(values: Tensor, gamma: int, axis: int, factors: Tensor | None) -> Tensor | None:
    """The sum of each ``gamma`` neighbours on an axis, on the first one times factors, if there are any."""
    count, rest = divmod(values.shape[axis], gamma)
    return None if rest else _in_groups("sum_members", values, gamma, axis, factors, count)


def repeated(values: Tensor, gamma: int, axis: int, factors: Tensor | None) -> Tensor | None:
    """Each entry of an axis ``gamma`` times, one after another, on the first axis times factors."""
    return _in_groups("repeat", values, gamma, axis, factors, values.shape[axis] * gamma)


def _in_groups(
    loop: str, values: Tensor, gamma: int, axis: int, factors: Tensor | None, count: int
) -> Tensor | None:
    if gamma < 2 or (loops := ready(*((values,) if factors is None else (values, factors)))) is None:
        return None
    place = None
    if factors is not None:
        if axis != -values.ndim or factors.numel() != max(count, values.shape[0]):
            return None
        place = factors.data_ptr()
    shape, inner = list(values.shape), _behind(values, axis)
    shape[axis] = count
    made = values.new_empty(shape)
    # of both, the one with a number for each group
    groups, threads = min(made.numel(), values.numel()) // (inner or 1), torch.get_num_threads()
    getattr(loops, loop)(values.data_ptr(), place, groups, gamma, inner, made.data_ptr(), threads)
    return made


def _behind(values: Tensor, axis: int) -> int:
    """How many numbers there are along the axes behind one."""
    return 1 if axis == -1 else values.shape[values.ndim + axis + 1 :].numel()
