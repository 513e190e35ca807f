"""Spine remodeling, and writing where a mask says so; False where the loops cannot serve."""

from __future__ import annotations

import torch
from torch import Tensor

from bouton.native.ready import are_plain, ready


def remodel(
    weight: Tensor,
    largest: Tensor,
    sharpness: float,
    bound: Tensor | float,
    start: int,
    key: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Which synapses are replaced, and by what; see :class:`bouton.SpineRemodeling`.

    For what :func:`serves` is true of. The chance is ``erfc(sharpness |w| / largest)``, and new values are
    from ``bound`` to either side of 0. ``start`` is the place of the first synapse in its weight.
    """
    loops, values = ready(weight), torch.empty_like(weight)
    bound = bound if isinstance(bound, Tensor) else weight.new_tensor(bound)
    changed = torch.empty_like(weight, dtype=torch.bool)
    assert loops is not None
    loops.remodel(
        weight.data_ptr(),
        weight.numel(),
        largest.data_ptr(),
        sharpness,
        bound.data_ptr(),
        start,
        *key,
        changed.data_ptr(),
        values.data_ptr(),
        torch.get_num_threads(),
    )
    return changed, values


def put_where(mask: Tensor, values: Tensor, out: Tensor) -> bool:
    """Write ``values`` into ``out`` where ``mask`` is true."""
    if (loops := ready(values, out)) is None or not _fits(mask, out) or values.shape != out.shape:
        return False
    threads = torch.get_num_threads()
    loops.put_where(mask.data_ptr(), values.data_ptr(), out.data_ptr(), out.numel(), threads)
    return True


def clear_where(mask: Tensor, out: Tensor) -> bool:
    """Set ``out`` to 0 where ``mask`` is true."""
    if (loops := ready(out)) is None or not _fits(mask, out):
        return False
    loops.clear_where(mask.data_ptr(), out.data_ptr(), out.numel(), torch.get_num_threads())
    return True


def _fits(mask: Tensor, out: Tensor) -> bool:
    return mask.shape == out.shape and are_plain((mask,), torch.bool)
