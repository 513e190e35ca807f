"""Sizes of synapses, for what a rule takes over a whole layer: a sum, a mean, the largest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bouton.native import sizes as native
from bouton.tensors.precision import wide
from bouton.tensors.scratch import PIECE, passes, row_pieces, scratch


def over_pieces(function: Callable[[Tensor], Tensor], weight: Tensor) -> list[Tensor]:
    """What a function makes of some rows after another, such as their sum."""
    if not passes(weight) or weight.numel() <= PIECE:  # no guard on a size under torch.compile
        return [function(weight)]
    return [function(weight[rows]) for rows in row_pieces(weight)]


def mean_size(weight: Tensor) -> Tensor:
    """The mean of :func:`sizes`."""
    mean = native.mean_size(weight)
    if mean is not None:
        return mean
    return torch.stack(over_pieces(lambda part: passing_sizes(part).sum(), weight)).sum() / weight.numel()


def passing_sizes(weight: Tensor) -> Tensor:
    """:func:`sizes` in memory that is used again at the next call."""
    return passing_abs("size", weight).nan_to_num_(0.0, 0.0)


def passing_abs(name: str, tensor: Tensor) -> Tensor:
    """The sizes of numbers in float32 at least, in memory that the next call uses again."""
    if not passes(tensor):
        return tensor.to(wide(tensor.dtype)).abs()
    size = scratch(name, tensor, wide(tensor.dtype))
    return torch.abs(tensor, out=size) if size.dtype == tensor.dtype else size.copy_(tensor).abs_()


def sizes(weight: Tensor) -> Tensor:
    """``|w|`` in float32 at least, in the shape of ``weight``; 0 where ``w`` is infinite or not a number.

    So one synapse that is lost does not make a mean or a maximum, and with it every rate of the layer,
    not a number.

    Example:
        >>> sizes(torch.tensor([1.0, -2.0, torch.inf, torch.nan]).bfloat16())
        tensor([1., 2., 0., 0.])
    """
    # in place on what abs() has made, which costs less than to ask which are finite
    return weight.to(wide(weight.dtype)).abs().nan_to_num_(0.0, 0.0)
