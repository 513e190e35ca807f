"""In which type to calculate, and how much of a change a type holds."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which to sum numbers of ``dtype``: float32 at least.

    In float16 a sum of 70000 ones is infinite, and in bfloat16 a rate of 0.999 is 1.
    """
    return torch.promote_types(dtype, torch.float32)


def is_precise(weight: Tensor) -> bool:
    """Whether what was added to a weight is what was to be added: in 16 bits it is not."""
    return weight.dtype in (torch.float32, torch.float64)
