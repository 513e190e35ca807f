"""What is done to a layer's outputs; None or False where the loops cannot serve."""

from __future__ import annotations

import torch
from torch import Tensor

from bouton.native.ready import ready


def count_beyond(output: Tensor, axis: int, size: float, counts: Tensor) -> bool:
    """Add to ``counts`` in float64 how many outputs of each node, on ``axis``, are beyond a size."""
    if (loops := ready(output)) is None or ready(counts, dtype=torch.float64) is None:
        return False
    nodes, inner = output.shape[axis], output.shape[output.ndim + axis + 1 :].numel()
    if counts.shape != (nodes,):
        return False
    outer = output.numel() // (nodes * inner) if nodes * inner else 0
    threads = torch.get_num_threads()
    loops.count_beyond(output.data_ptr(), outer, nodes, inner, size, counts.data_ptr(), threads)
    return True


def activity(before: Tensor, since: Tensor) -> tuple[Tensor, Tensor] | None:
    """The sum of two counts of activity in float64, and what it makes of each node's deviations."""
    if (loops := ready(before, since, dtype=torch.float64)) is None:
        return None
    active, factors = torch.empty_like(before), torch.empty_like(before, dtype=torch.float32)
    places = (tensor.data_ptr() for tensor in (before, since, active, factors))
    loops.activity(*places, len(before))
    return active, factors


def pool(output: Tensor, gamma: int, axis: int) -> Tensor | None:
    """The sum of each ``gamma`` neighbours on an axis, at the place of each of them."""
    return _in_groups("pool", output, gamma, axis, output.shape[axis])


def summed(values: Tensor, gamma: int, axis: int) -> Tensor | None:
    """The sum of each ``gamma`` neighbours on an axis."""
    return _in_groups("sum_members", values, gamma, axis, values.shape[axis] // gamma)


def repeated(values: Tensor, gamma: int, axis: int) -> Tensor | None:
    """Each entry of an axis ``gamma`` times, one after another."""
    return _in_groups("repeat", values, gamma, axis, values.shape[axis] * gamma)


def _in_groups(loop: str, values: Tensor, gamma: int, axis: int, count: int) -> Tensor | None:
    if gamma < 2 or (loops := ready(values)) is None:
        return None
    shape, groups = values.shape, count if loop == "sum_members" else count // gamma
    if max(count, shape[axis]) != groups * gamma:
        return None
    before, behind = shape[: values.ndim + axis], shape[values.ndim + axis + 1 :]
    made, outer, inner = values.new_empty((*before, count, *behind)), before.numel(), behind.numel()
    threads = torch.get_num_threads()
    getattr(loops, loop)(values.data_ptr(), outer * groups, gamma, inner, made.data_ptr(), threads)
    return made
