"""Noise that is drawn anew in every step for every synapse, at the cost of reading it."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from bouton.native.rules import Noise
from bouton.sites import Synapses
from bouton.tensors.draws import normal
from bouton.tensors.shards import is_spread

SIZE = 1 << 18  # numbers in the table
RUN = 1 << 17  # synapses that read it from one place


def fluctuate(synapses: Synapses, rate: Tensor, spread: float) -> Tensor:
    """Make ``|N(rate, spread * rate)|`` of a rate for each synapse, in place where that can be.

    On a CPU, drawing normal numbers takes longer than all the rest that is done to a weight in a step.
    There, they are read from a table of 2**18, drawn once for all: each 131072 synapses, row by row, read
    on from a place that is drawn anew at each call. So a synapse sees another number of the table in each
    step, and its neighbours see others; farther off, stretches of the same numbers are common. Other
    devices draw each number, and so draw others.
    """
    if spread == 0:
        return rate
    if rate.device.type != "cpu":
        return rate.mul_((1 + spread * synapses.normal()).abs_())
    if is_spread(rate) or not rate.is_contiguous():  # the table is read row by row
        ones = torch.ones(rate.shape, dtype=rate.dtype, device=rate.device)
        return rate.mul_(synapses.laid_out(_read(synapses, ones, spread)))
    return _read(synapses, rate, spread)


def noise_of(synapses: Synapses, spread: float, dtype: torch.dtype = torch.float32) -> Noise:
    """What the synapses of a CPU read in the next draw."""
    first, second = synapses.stream.key()
    return Noise(_table(spread, dtype), SIZE, RUN, synapses.start, first, second | 1)


def _read(synapses: Synapses, rate: Tensor, spread: float) -> Tensor:
    table, size, length, start, first, stride = noise_of(synapses, spread, rate.dtype)
    flat, end = rate.view(-1), start + rate.numel()
    for run in range(start // length, -(-end // length)):
        low, high = max(run * length, start), min((run + 1) * length, end)
        place = (first + run * stride) % size + low - run * length
        flat[low - start : high - start].mul_(table[place : place + high - low])
    return rate


@cache
def _table(spread: float, dtype: torch.dtype) -> Tensor:
    """``|1 + spread * n|`` for ``n`` of mean 0 and variance 1; the first follow the last."""
    drawn = normal((0x62B1D5A7, 0x94D049BB), (SIZE,), torch.float64)
    drawn = (drawn - drawn.mean()) / drawn.std(correction=0)
    return torch.cat([drawn, drawn[:RUN]]).mul_(spread).add_(1).abs_().to(dtype)
