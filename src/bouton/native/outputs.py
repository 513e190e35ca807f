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
    if gamma < 2 or output.shape[axis] % gamma or (loops := ready(output)) is None:
        return None
    pooled, inner = torch.empty_like(output), output.shape[output.ndim + axis + 1 :].numel()
    outer = output.numel() // (gamma * inner) if inner else 0
    loops.pool(output.data_ptr(), outer, gamma, inner, pooled.data_ptr(), torch.get_num_threads())
    return pooled
