"""Rates that are not kept, but made again wherever they are needed."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from bouton.tensors.draws import Key, short_bits
from bouton.tensors.precision import wide

SHORT = 1 << 15  # 16 random bits, taken as a number with a sign, are in [-SHORT, SHORT)


class SeededRates(NamedTuple):
    r"""One learning rate for each synapse of a weight, made from a key.

    .. math:: r_i = \mathrm{clip}(1 + \nu q_{s + i} / 2^{15}), \qquad q \in [-2^{15}, 2^{15})

    where ``i`` is the synapse's place in the weight, row by row, and ``q`` the sequence of
    :func:`bouton.tensors.draws.short_bits` that ``key`` names: uniform on [1-nu, 1+nu), in steps of
    nu / 32768.

    Attributes:
        key: two numbers of 32 bits.
        nu: relative spread of the rates.
        clip: bounds of the rates, or None.
        start: place of the weight's first synapse in the sequence; not 0 where the weight is a part of a
            larger one.

    Example:
        >>> import torch
        >>> SeededRates(key=(1, 2), nu=0.5).of(torch.zeros(2, 2)).shape
        torch.Size([2, 2])
    """

    key: Key
    nu: float
    clip: tuple[float, float] | None = None
    start: int = 0

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest rate that ``clip`` allows."""
        return (-math.inf, math.inf) if self.clip is None else self.clip

    def of(self, weight: Tensor) -> Tensor:
        """The rates of a weight, in its shape and on its device; for 16-bit weights in float32."""
        dtype = wide(weight.dtype)
        drawn = short_bits(self.key, weight.numel(), weight.device, self.start).to(dtype)
        return drawn.mul_(self.nu / SHORT).add_(1).clamp_(*self.bounds).reshape(weight.shape)
