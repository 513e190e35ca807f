"""Sums, means and the largest of sizes of synapses; None where the loops cannot serve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bouton.native.ready import ready


def row_sizes(weight: Tensor) -> Tensor | None:
    """The sum of sizes of each row ``[node]``."""
    if (loops := ready(weight)) is None:
        return None
    rows = weight.shape[0]
    sums, columns = weight.new_empty(rows), weight.numel() // rows if rows else 0
    loops.row_sizes(weight.data_ptr(), rows, columns, sums.data_ptr(), torch.get_num_threads())
    return sums


def mean_size(weight: Tensor) -> Tensor | None:
    """The mean of all sizes; those that are infinite or not a number count as 0."""
    if (loops := ready(weight)) is None:
        return None
    mean = weight.new_empty(())
    loops.mean_size(weight.data_ptr(), weight.numel(), mean.data_ptr(), torch.get_num_threads())
    return mean


def shares(weights: Sequence[Tensor], clip: tuple[float, float] | None, normalize: bool) -> Tensor | None:
    """The factors of :class:`bouton.Grapes` of nodes into which all of some weights lead."""
    sums, (low, high) = row_sizes(weights[0]), clip or (0.0, torch.inf)
    for other in weights[1:]:
        more = row_sizes(other)
        sums = None if sums is None or more is None else sums.add_(more)
    if sums is None or (loops := ready(sums)) is None:
        return None
    loops.shares(sums.data_ptr(), sums.numel(), low, high, normalize)
    return sums


def largest_size(weight: Tensor) -> Tensor | None:
    """The largest of all sizes but those that are infinite or not a number."""
    if (loops := ready(weight)) is None:
        return None
    largest = weight.new_empty(())
    loops.largest_size(weight.data_ptr(), weight.numel(), largest.data_ptr(), torch.get_num_threads())
    return largest
