"""The rules of VolumePlasticity and Crystallization; None or False where the loops cannot serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bouton.native.library import Noise as _Noise
from bouton.native.ready import ready


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


def volume_rates(
    weight: Tensor, steepness: float, noise: Callable[[], Noise] | None, rates: Tensor | None
) -> float | None:
    """The sum of ``2 ** (steepness / (|w| + 1))``; ``rates``, if given, become that times noise.

    Noise is drawn where the loop serves, and not before.
    """
    if (loops := ready(weight, weight if rates is None else rates)) is None:
        return None
    given = _Noise()
    if noise is not None:
        table, *places = noise()
        given = _Noise(table.data_ptr(), *places)
    place = None if rates is None else rates.data_ptr()
    threads = torch.get_num_threads()
    total: float = loops.volume_rates(weight.data_ptr(), weight.numel(), steepness, given, place, threads)
    return total


def crystallize(
    rates: Tensor,
    weight: Tensor,
    gradient: Tensor,
    threshold: float,
    most: Tensor | None,
    less: float,
    frozen: float,
) -> bool:
    """Add ``less * rates`` to the rates whose gradient is below ``threshold * |w|`` or above ``most``.

    That is the mean of ``|w|`` where it is None. Rates as small as ``frozen`` become 0.
    """
    if (loops := ready(rates, weight, gradient, *([] if most is None else [most]))) is None:
        return False
    if not rates.shape == weight.shape == gradient.shape or (most is not None and most.numel() != 1):
        return False
    loops.crystallize(
        rates.data_ptr(),
        weight.data_ptr(),
        gradient.data_ptr(),
        threshold,
        None if most is None else most.data_ptr(),
        less,
        frozen,
        rates.numel(),
        torch.get_num_threads(),
    )
    return True
