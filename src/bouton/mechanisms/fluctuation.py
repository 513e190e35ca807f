"""Noise that is drawn anew in every step for every synapse, at the cost of reading it."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from bouton.draws import normal
from bouton.mechanisms.sizes import wide
from bouton.shards import is_spread
from bouton.sites import Synapses

SIZE = 1 << 18  # numbers in the table
RUN = 1 << 17  # synapses that read it from one place


def fluctuating(synapses: Synapses, rate: Tensor, spread: float) -> Tensor:
    """``|N(rate, spread * rate)|`` for each synapse, as another tensor; ``rate`` has the weight's shape.

    On a CPU, drawing normal numbers takes longer than all the rest that is done to a weight in a step.
    There, they are read from a table of 2**18, drawn once for all: each 131072 synapses, row by row, read
    on from a place that is drawn anew at each call. So a synapse sees another number of the table in each
    step, and its neighbours see others; farther off, stretches of the same numbers are common. Other
    devices draw each number, and so draw others.
    """
    if spread == 0:
        return rate.clone()
    if rate.device.type != "cpu" or is_spread(synapses.weight):
        return (rate * (1 + spread * synapses.normal())).abs_()
    table, (first, second) = _table(spread, wide(rate.dtype)), synapses.stream.key()
    made = torch.empty(rate.shape, dtype=wide(rate.dtype))
    flat, end = made.view(-1), synapses.start + made.numel()
    source = rate.reshape(-1)
    for run in range(synapses.start // RUN, -(-end // RUN)):
        low, high = max(run * RUN, synapses.start), min((run + 1) * RUN, end)
        place = (first + run * (second | 1)) % SIZE + low - run * RUN
        part = slice(low - synapses.start, high - synapses.start)
        torch.mul(source[part], table[place : place + high - low], out=flat[part])
    return made


@cache
def _table(spread: float, dtype: torch.dtype) -> Tensor:
    """``|1 + spread * n|`` for ``n`` of mean 0 and variance 1; the first follow the last."""
    drawn = normal((0x62B1D5A7, 0x94D049BB), (SIZE,), torch.float64)
    drawn = (drawn - drawn.mean()) / drawn.std(correction=0)
    return torch.cat([drawn, drawn[:RUN]]).mul_(spread).add_(1).abs_().to(dtype)
