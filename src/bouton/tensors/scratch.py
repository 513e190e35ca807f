"""Memory for what is made and forgotten at once: kept, because new memory costs a CPU more than sums."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from bouton.tensors.shards import is_spread

PIECE = 1 << 18  # numbers worked on at a time, so that they stay in a CPU's cache


class _Kept(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self.views: dict[tuple[str, torch.dtype, torch.Size], Tensor] = {}


_KEPT = _Kept()


def scratch(name: str, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty tensor of the shape of ``like``; the next call with the same name may give the same memory.

    So the caller must be done with it by then, and not hand it on. Only small tensors of a CPU are kept.
    """
    dtype, shape = dtype or like.dtype, like.shape
    kept = _KEPT.views.get((name, dtype, shape))
    if kept is not None and like.is_cpu and like.is_contiguous():
        return kept
    count = like.numel()
    if not like.is_cpu or count > 2 * PIECE or not like.is_contiguous():
        return torch.empty_like(like, dtype=dtype)
    with torch.inference_mode(False):  # or what an evaluation made could not be written to in training
        buffer = _KEPT.buffers.get((name, dtype))
        if buffer is None or buffer.numel() < count:
            buffer = _KEPT.buffers[name, dtype] = torch.empty(count, dtype=dtype, device="cpu")
            for key in [key for key in _KEPT.views if key[:2] == (name, dtype)]:
                del _KEPT.views[key]
        view = _KEPT.views[name, dtype, shape] = buffer[:count].view(shape)
    return view


def passes(tensor: Tensor) -> bool:
    """Whether a tensor is one that memory is kept for: of a CPU, whole, and no stand-in for others."""
    if not tensor.is_cpu or is_spread(tensor) or torch.compiler.is_compiling():
        return False
    return not torch._C._are_functorch_transforms_active()


def row_pieces(tensor: Tensor) -> Iterator[slice]:
    """Slices of a tensor's first axis, each of at most :data:`PIECE` numbers where a row has not more.

    One that takes all for what is small, on another device, or spread over processes.
    """
    count = len(tensor)
    if tensor.numel() <= PIECE or tensor.device.type != "cpu" or is_spread(tensor):
        yield slice(0, count)
        return
    size = max(PIECE // tensor[0].numel(), 1)
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
