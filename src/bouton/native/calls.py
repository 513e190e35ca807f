"""The loops in C as functions of tensors; each returns None or False where it cannot serve."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bouton.native.library import Noise as _Noise
from bouton.native.library import Rates, library

_KINDS = (Tensor, nn.Parameter)  # and none that stand in for others
_WIDTHS = {torch.float16: 2, torch.float32: 4}


class Noise(NamedTuple):
    """Numbers that are read from a table: each ``run`` of synapses reads on from a place of its own.

    That place is ``first + number of the run * stride``, modulo ``size``. ``start`` is where the first of
    the synapses is in their weight.
    """

    table: Tensor
    size: int
    run: int
    start: int
    first: int
    stride: int


def ready(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> ctypes.CDLL | None:
    """The loops, if they can work on these tensors."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return None
    if torch._C._len_torch_dispatch_stack():  # of what watches torch's operations, as fake tensors do
        return None
    return library() if _are_plain(tensors, dtype) else None


def _are_plain(tensors: Sequence[Tensor], dtype: torch.dtype) -> bool:
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
    if sums is None or (loops := library()) is None:
        return None
    loops.shares(sums.data_ptr(), sums.numel(), low, high, normalize)
    return sums


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
    if width is None or not count or not _are_plain((values,), values.dtype):
        return None
    if factor is not None and (factor.shape != synapses.shape or not _are_plain((factor,), torch.float32)):
        return None
    others = None if factor is None else factor.data_ptr()
    if alike and nodes is None:
        return Rates(values.data_ptr(), width, scale, shift, None, others, 1, count)
    rows = len(synapses)
    by_node = (rows, *[1] * (synapses.ndim - 1))
    if nodes is not None and (nodes.shape != by_node or not _are_plain((nodes,), torch.float32)):
        return None
    if not alike:
        if nodes is not None or values.shape != by_node or width != 4:
            return None
        values, nodes, width = synapses, values, 0  # which are not read
    place = None if nodes is None else nodes.data_ptr()
    return Rates(values.data_ptr(), width, scale, shift, place, others, rows, count // rows)


def volume_rates(
    weight: Tensor, steepness: float, noise: Noise | None, rates: Tensor | None
) -> float | None:
    """The sum of ``2 ** (steepness / (|w| + 1))``; ``rates``, if given, become that times noise."""
    if (loops := ready(weight, weight if rates is None else rates)) is None:
        return None
    given = _Noise() if noise is None else _Noise(noise.table.data_ptr(), *noise[1:])
    place = None if rates is None else rates.data_ptr()
    threads = torch.get_num_threads()
    total: float = loops.volume_rates(weight.data_ptr(), weight.numel(), steepness, given, place, threads)
    return total


def crystallize(
    rates: Tensor, weight: Tensor, gradient: Tensor, threshold: float, most: Tensor, less: float
) -> bool:
    """Add ``less * rates`` to the rates whose gradient is below ``threshold * |w|`` or above ``most``."""
    if (loops := ready(rates, weight, gradient, most)) is None:
        return False
    if not rates.shape == weight.shape == gradient.shape or most.numel() != 1:
        return False
    loops.crystallize(
        rates.data_ptr(),
        weight.data_ptr(),
        gradient.data_ptr(),
        threshold,
        most.data_ptr(),
        less,
        rates.numel(),
        torch.get_num_threads(),
    )
    return True


def count_beyond(output: Tensor, axis: int, size: float, counts: Tensor) -> bool:
    """Add to ``counts`` in float64 how many outputs of each node, on ``axis``, are beyond a size."""
    if (loops := ready(output)) is None or ready(counts, dtype=torch.float64) is None:
        return False
    nodes, inner = output.shape[axis], output.shape[output.ndim + axis + 1 :].numel()
    if counts.shape != (nodes,):
        return False
    outer = output.numel() // (nodes * inner) if nodes * inner else 0
    threads = torch.get_num_threads()
    loops.count_beyond(output.data_ptr(), outer, nodes, inner, size, counts.data_ptr(), threads)
    return True


def activity(before: Tensor, since: Tensor) -> tuple[Tensor, Tensor] | None:
    """The sum of two counts of activity in float64, and what it makes of each node's deviations."""
    if (loops := ready(before, since, dtype=torch.float64)) is None:
        return None
    active, factors = torch.empty_like(before), torch.empty_like(before, dtype=torch.float32)
    places = (tensor.data_ptr() for tensor in (before, since, active, factors))
    loops.activity(*places, len(before))
    return active, factors


def pool(output: Tensor, gamma: int, axis: int) -> Tensor | None:
    """The sum of each ``gamma`` neighbours on an axis, at the place of each of them."""
    if gamma < 2 or output.shape[axis] % gamma or (loops := ready(output)) is None:
        return None
    pooled, inner = torch.empty_like(output), output.shape[output.ndim + axis + 1 :].numel()
    outer = output.numel() // (gamma * inner) if inner else 0
    loops.pool(output.data_ptr(), outer, gamma, inner, pooled.data_ptr(), torch.get_num_threads())
    return pooled


def largest_size(weight: Tensor) -> Tensor | None:
    """The largest of all sizes but those that are infinite or not a number."""
    if (loops := ready(weight)) is None:
        return None
    largest = weight.new_empty(())
    loops.largest_size(weight.data_ptr(), weight.numel(), largest.data_ptr(), torch.get_num_threads())
    return largest


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
    loops, values = library(), torch.empty_like(weight)
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
    return mask.shape == out.shape and _are_plain((mask,), torch.bool)
