"""Sizes of synapses, for what a rule takes over a whole layer: a sum, a mean, the largest."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which to sum numbers of ``dtype``: float32 at least.

    In float16 a sum of 70000 ones is infinite, and in bfloat16 a rate of 0.999 is 1.
    """
    return torch.promote_types(dtype, torch.float32)


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
