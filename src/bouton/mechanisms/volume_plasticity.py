"""Volume-dependent plasticity: large synapses learn more slowly, and every rate fluctuates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bouton.mechanism import Mechanism, register
from bouton.mechanisms.fluctuation import fluctuate, noise_of
from bouton.mechanisms.sizes import over_pieces, passing_sizes, sizes
from bouton.native.rules import volume_rates
from bouton.sites import Deviation, Synapses
from bouton.tensors.scratch import scratch


def volumes(weight: Tensor) -> Tensor:
    """The volume ``v = |w| / (|w| + 1)`` of every synapse, in the shape of ``weight``."""
    size = sizes(weight)
    return size / (size + 1)


_STEEP = 40  # up to here, float32 holds the sum of exp(s (1 - v)) over any weight


def _mean_rate(weight: Tensor, steepness: float, smallest: Tensor | None) -> Tensor:
    """``2 ** (steepness (1 - v))``, or ``2 ** (-steepness (v - smallest))``; good until the next call."""
    exponent = passing_sizes(weight).add_(1).reciprocal_()  # 1 - v
    if smallest is not None:
        exponent.sub_(1 - smallest)
    return exponent.mul_(steepness).exp2_()


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
    that the mean of ``m`` over the layer is 1. A weight that is infinite or not a number counts as 0. On a
    CPU the normal numbers are read from a table of 2**18, each 131072 synapses from a place of their own
    that is drawn anew in every step: drawing each would take longer than all the rest.

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
        known = self._smallest(weight)
        if not self.normalize:
            return known
        total = None if known or not weight.numel() else volume_rates(weight, self._steepness, None, None)
        if total is not None:
            return {"scale": torch.tensor(weight.numel() / total, dtype=torch.float64)}
        sums = over_pieces(lambda part: self._mean_rate(part, known).sum(), weight)
        return {**known, "scale": weight.numel() / torch.stack(sums).sum(dtype=torch.float64)}

    def deviation(self, synapses: Synapses) -> Deviation | None:
        weight, known = synapses.weight, synapses.survey or {}
        if self.normalize and self.stability == 0 and self.spread == 0:
            return Deviation(weight.new_zeros(()), 0.0)
        if self.stability > _STEEP or not weight.numel() or not weight.is_cpu or type(weight) is not Tensor:
            return None
        # not that of another class on this weight
        rates = scratch(f"volume {type(self).__qualname__}", weight)
        noise = partial(noise_of, synapses, self.spread) if self.spread else None
        total = volume_rates(weight, self._steepness, noise, rates)
        if total is None:
            return None
        if not self.normalize:
            scale = self.base * math.exp(-self.stability)
        else:  # the loops work on numbers of the host, for which nothing waits
            scale = known["scale"].item() if "scale" in known else weight.numel() / total
        return Deviation(rates, scale, shift=-1.0)

    def rule(self, synapses: Synapses) -> Tensor:
        made = self.deviation(synapses)
        if made is not None:
            return (made.values * made.scale + (1 + made.shift)).expand(synapses.weight.shape)
        weight, known = synapses.weight, synapses.survey
        if known is None:
            known = self._smallest(weight)
        scale = known.get("scale")
        if not self.normalize:
            base = self.base if "smallest" in known else self.base * math.exp(-self.stability)
            scale = weight.new_full((), base, dtype=torch.float64)
        rate = self._mean_rate(weight, known)
        if scale is None:
            scale = rate.mean().reciprocal()  # in place, a mean that is spread would not be inverted
        return fluctuate(synapses, rate, self.spread) * scale

    @property
    def _steepness(self) -> float:
        return self.stability / math.log(2)

    def _smallest(self, weight: Tensor) -> dict[str, Tensor]:
        """The smallest volume, of a weight of which it matters."""
        return {"smallest": volumes(weight).amin()} if self.stability > _STEEP and weight.numel() else {}

    def _mean_rate(self, weight: Tensor, known: Mapping[str, Tensor]) -> Tensor:
        """``m / b``, good until the next call."""
        return _mean_rate(weight, self._steepness, known.get("smallest"))
