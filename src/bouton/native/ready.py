"""Whether the loops in C can work on tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bouton.native.library import library

_KINDS = (Tensor, nn.Parameter)  # and none that stand in for others


def ready(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> ctypes.CDLL | None:
    """The loops, if they can work on these tensors."""
    if torch.compiler.is_dynamo_compiling() or is_watched() or not are_plain(tensors, dtype):
        return None
    return library()


def able(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> ctypes.CDLL | None:
    """The same where it is known that nothing watches."""
    return library() if are_plain(tensors, dtype) else None


def is_watched() -> bool:
    """Whether what is done now is to be done by operations of torch, which something sees or changes.

    For use where no graph is made, as in the hooks of an optimizer's step.
    """
    # modes, as of fake tensors, and where a program is exported
    return torch._C._are_functorch_transforms_active() or bool(torch._C._len_torch_dispatch_stack())


def are_plain(tensors: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether the numbers of tensors lie side by side in memory, and mean what they say."""
    for tensor in tensors:
        if type(tensor) not in _KINDS or tensor.dtype is not dtype or not tensor.is_cpu:
            return False
        if tensor.layout is not torch.strided or tensor.is_nested or torch._is_functional_tensor(tensor):
            return False
        if not tensor.is_contiguous() or tensor.is_neg() or tensor._is_zerotensor():
            return False
    return True


def serves(*tensors: Tensor) -> bool:
    """Whether the loops work on these tensors."""
    return ready(*tensors) is not None
