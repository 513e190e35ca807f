"""Volume-dependent plasticity: large synapses learn more slowly, and every rate fluctuates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bouton.mechanism import Mechanism, register
from bouton.mechanisms.fluctuation import fluctuate
from bouton.mechanisms.sizes import over_pieces, passing_sizes, sizes
from bouton.precision import wide
from bouton.scratch import PIECE
from bouton.sites import Deviation, Synapses


def volumes(weight: Tensor) -> Tensor:
    """The volume ``v = |w| / (|w| + 1)`` of every synapse, in the shape of ``weight``."""
    size = sizes(weight)
    return size / (size + 1)


_STEEP = 40  # up to here, float32 holds the sum of exp(s (1 - v)) over any weight


def _mean_rate(weight: Tensor, stability: float, smallest: Tensor | None) -> Tensor:
    """``exp(s (1 - v))``, or ``exp(-s (v - smallest))``; in powers of 2, and good until the next call."""
    exponent = passing_sizes(weight).add_(1).reciprocal_()  # 1 - v
    if smallest is not None:
        exponent.sub_(1 - smallest)
    return exponent.mul_(stability / math.log(2)).exp2_()


@register(
    paper="Synaptic diversity (Nat. Commun. 16, 2025)",
    neutral=({"stability": 0.0, "spread": 0.0},),
    examples=({}, {"normalize": False}, {"spread": 0.0}),
)
@dataclass(frozen=True, kw_only=True)
class VolumePlasticity(Mechanism):
    r"""Scale each synapse's update by a rate that falls with its size and is drawn anew each step.

    .. math:: v = \frac{|w|}{|w| + 1}, \qquad m = b\, e^{-s v}, \qquad r = |N(m, \sigma m)|

    The rates ``r`` have the shape of the weight and no unit. With ``normalize`` the base ``b`` is chosen so
    that the mean of ``m`` over the layer is 1. A weight that is infinite or not a number counts as 0.

    Args:
        stability: ``s``, how much slower large synapses are.
        spread: ``sigma``, the standard deviation of a rate over its mean; 0 draws nothing.
        normalize: keep the layer's mean rate at 1.
        base: ``b`` with ``normalize=False``, as published 0.1.
        where: see :class:`bouton.Mechanism`.

    Raises:
        ValueError: a negative ``stability`` or ``spread``, or a ``base`` that is not above 0.

    Note:
        When not to use it: with ``normalize=False`` and the published base, unless you raise the learning
        rate along with it. It cuts the learning rate tenfold, and more for large weights: a hidden
        learning-rate change. In a fresh layer all weights are small and so are the differences between
        their rates: with weights up to 0.1, ``m`` varies by 17 % at most (exp(-2/11) = 0.83).

    References:
        Hofmann et al., Nature Communications 16, 5112 (2025), doi 10.1038/s41467-025-60078-9.

    Example:
        >>> volumes(torch.tensor([[0.0, 1.0, -3.0]]))
        tensor([[0.0000, 0.5000, 0.7500]])
    """

    stability: float = 2.0
    spread: float = 0.2
    normalize: bool = True
    base: float = 0.1

    site = "rate"
    in_parts = True
    rowwise = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stability", "spread"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"VolumePlasticity({name}={value!r}): use a finite number from 0")
        if not isinstance(self.base, int | float) or not 0 < self.base < math.inf:
            raise ValueError(f"VolumePlasticity(base={self.base!r}): use a finite number above 0")

    def survey(self, synapses: Synapses) -> dict[str, Tensor]:
        weight = synapses.weight
        known = {"smallest": volumes(weight).amin()} if self._is_steep and weight.numel() else {}
        if not self.normalize:
            smallest = 0.0 if known else 1.0  # of which exp(s (1 - v)) knows nothing
            scale = self.base * math.exp(-self.stability * smallest)
            return {**known, "scale": weight.new_full((), scale, dtype=wide(weight.dtype))}
        if weight.numel() <= PIECE:  # kept until the step is made, for it is small
            rate = self._mean_rate(weight, known).clone()
            return {"rate": rate, "scale": rate.mean().reciprocal_()}
        sums = over_pieces(lambda part: self._mean_rate(part, known).sum(), weight)
        return {**known, "scale": weight.numel() / torch.stack(sums).sum()}

    @property
    def _is_steep(self) -> bool:
        return self.stability > _STEEP

    def _mean_rate(self, weight: Tensor, known: Mapping[str, Tensor]) -> Tensor:
        return _mean_rate(weight, self.stability, known.get("smallest"))

    def deviation(self, synapses: Synapses) -> Deviation:
        if self.normalize and self.stability == 0 and self.spread == 0:
            return Deviation(synapses.weight.new_zeros(()), 0.0)
        return Deviation(self._rate(synapses).sub_(1))

    def rule(self, synapses: Synapses) -> Tensor:
        return self._rate(synapses).clone()

    def _rate(self, synapses: Synapses) -> Tensor:
        """What ``rule`` returns; good until the next call."""
        known = self.surveyed(synapses)
        rate = known["rate"] if "rate" in known else self._mean_rate(synapses.weight, known)
        rate = fluctuate(synapses, rate, self.spread)
        return rate.mul_(known["scale"])
