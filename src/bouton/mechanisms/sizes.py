"""Sizes of synapses, for what a rule takes over a whole layer: a sum, a mean, the largest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bouton.shards import is_spread


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which to sum numbers of ``dtype``: float32 at least.

    In float16 a sum of 70000 ones is infinite, and in bfloat16 a rate of 0.999 is 1.
    """
    return torch.promote_types(dtype, torch.float32)


_PIECE = 1 << 18  # numbers that a CPU takes at a time, so that what is made of them stays in its cache


def in_pieces(function: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
    """Apply a function that acts on each number alone, on a CPU to some rows after another."""
    if weight.numel() <= _PIECE or weight.device.type != "cpu" or is_spread(weight):
        return function(weight)
    made = torch.empty_like(weight, dtype=wide(weight.dtype))
    rows = max(_PIECE // weight[0].numel(), 1)
    for first in range(0, len(weight), rows):
        made[first : first + rows] = function(weight[first : first + rows])
    return made


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
