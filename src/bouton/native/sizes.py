"""Sums, means and the largest of sizes of synapses; None where the loops cannot serve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bouton.native.ready import ready


def mean_size(weight: Tensor) -> Tensor | None:
    """The mean of all sizes; those that are infinite or not a number count as 0."""
    if (loops := ready(weight)) is None:
        return None
    mean = weight.new_empty(())
    loops.mean_size(weight.data_ptr(), weight.numel(), mean.data_ptr(), torch.get_num_threads())
    return mean


def shares(weights: Sequence[Tensor], clip: tuple[float, float] | None, normalize: bool) -> Tensor | None:
    """The factors of :class:`bouton.Grapes` of nodes into which all of some weights lead."""
    if (loops := ready(*weights)) is None:
        return None
    rows, threads, adds = weights[0].shape[0], torch.get_num_threads(), False
    sums, (low, high) = weights[0].new_empty(rows), clip or (0.0, torch.inf)
    place = sums.data_ptr()
    for weight in weights:
        if weight.shape[0] != rows:
            return None
        columns = weight.numel() // rows if rows else 0
        loops.row_sizes(weight.data_ptr(), rows, columns, adds, place, threads)
        adds = True
    loops.shares(place, rows, low, high, normalize)
    return sums


def largest_size(weight: Tensor) -> Tensor | None:
    """The largest of all sizes but those that are infinite or not a number."""
    if (loops := ready(weight)) is None:
        return None
    largest = weight.new_empty(())
    loops.largest_size(weight.data_ptr(), weight.numel(), largest.data_ptr(), torch.get_num_threads())
    return largest
