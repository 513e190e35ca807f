"""What is added to a weight, times rates; False where the loops cannot serve."""

from __future__ import annotations

import torch
from torch import Tensor

from bouton.native.library import Rates
from bouton.native.ready import are_plain, ready

_WIDTHS = {torch.float16: 2, torch.float32: 4}


def deviate(
    out: Tensor,
    base: Tensor,
    change: Tensor,
    values: Tensor,
    scale: float,
    nodes: Tensor | None = None,
    shift: float = 0.0,
) -> bool:
    """``out = base + change * (shift + scale * values * nodes)``, as :class:`bouton.Deviation` has them."""
    rates = as_rates(out, values, scale, nodes, shift)
    if rates is None or (loops := ready(out, base, change)) is None:
        return False
    if base.shape != out.shape or change.shape != out.shape:
        return False
    loops.deviate(out.data_ptr(), base.data_ptr(), change.data_ptr(), rates, torch.get_num_threads())
    return True


def blend(
    now: Tensor,
    before: Tensor,
    values: Tensor,
    scale: float,
    nodes: Tensor | None = None,
    shift: float = 0.0,
    factor: Tensor | None = None,
) -> bool:
    """``now = before + (now - before) * factor * (1 + shift + scale * values * nodes)``."""
    rates = as_rates(now, values, scale, nodes, shift, factor)
    if rates is None or (loops := ready(now, before)) is None or before.shape != now.shape:
        return False
    loops.blend(now.data_ptr(), before.data_ptr(), rates, torch.get_num_threads())
    return True


def as_rates(
    synapses: Tensor,
    values: Tensor,
    scale: float,
    nodes: Tensor | None,
    shift: float,
    factor: Tensor | None = None,
) -> Rates | None:
    """Rates of some synapses as the loops take them; all tensors must be there until those are done."""
    width, count, alike = _WIDTHS.get(values.dtype), synapses.numel(), values.shape == synapses.shape
    if width is None or not count or not are_plain((values,), values.dtype):
        return None
    if factor is not None and (factor.shape != synapses.shape or not are_plain((factor,), torch.float32)):
        return None
    others = None if factor is None else factor.data_ptr()
    if alike and nodes is None:
        return Rates(values.data_ptr(), width, scale, shift, None, others, 1, count)
    rows = synapses.shape[0]
    by_node = (rows, *[1] * (synapses.ndim - 1))
    if nodes is not None and (nodes.shape != by_node or not are_plain((nodes,), torch.float32)):
        return None
    if not alike:
        if nodes is not None or values.shape != by_node or width != 4:
            return None
        values, nodes, width = synapses, values, 0  # which are not read
    place = None if nodes is None else nodes.data_ptr()
    return Rates(values.data_ptr(), width, scale, shift, place, others, rows, count // rows)
