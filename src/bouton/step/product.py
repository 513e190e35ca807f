"""What all rates of some synapses are together, and how they scale what was added."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bouton.claim import Claim
from bouton.native import rates as native
from bouton.sites import Deviation, Synapses
from bouton.step.updates import Update
from bouton.tensors.precision import wide
from bouton.tensors.scratch import PIECE, passes, scratch


class FixedRates:
    """Rates that stay as they are, for the whole of a weight."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._known: tuple[object, Deviation] | None = None  # of which states, and what

    @classmethod
    def of(cls, claim: Claim) -> FixedRates | None:
        """Those of a claim; None where they may change."""
        return cls(claim) if claim.layout.blocks == 1 and claim.mechanism.fixed else None

    def of_weight(self, weight: Tensor) -> Deviation:
        """The rates, which are the same object for as long as they stay."""
        states = self._claim.memory.states  # another list once a state was loaded
        if self._known is not None:
            of, known = self._known
            if of is states and known.values.device == weight.device:
                return known
        (synapses,) = self._claim.blocks(weight.detach())
        found = self._claim.mechanism.deviation(synapses)
        assert found is not None
        self._known = states, found
        return found


def rates_of(claims: Sequence[Claim], parts: Sequence[Synapses | Deviation], like: Tensor) -> Deviation:
    """The product of all rates of ``like``, maybe in memory that is used again, or a mechanism's own.

    ``parts``: what each rule is to see, or what it is known to return.
    """
    factors, deviations = [], []
    for claim, part in zip(claims, parts, strict=True):
        if isinstance(part, Deviation):
            deviations.append(part)
            continue
        known = claim.mechanism.deviation(part) if claim.deviates else None
        if known is None:
            factors.append(claim.factor(part))  # may be one for each node
            continue
        if known.factor is not None:
            factors.append(known.factor)
            known = known._replace(factor=None)
        deviations.append(known)
    if len(deviations) == 1 and len(factors) <= 1:  # left to the pass that adds them
        return deviations[0]._replace(factor=factors[0]) if factors else deviations[0]
    if len(factors) == 1 and not deviations:
        return Deviation(factors[0], shift=-1.0)
    made = scratch("product", like, wide(like.dtype))
    if not factors:
        factors = [_rate(deviations.pop(), made)]
    return Deviation(_product(factors, deviations, made), shift=-1.0)


def _product(factors: Sequence[Tensor], deviations: Sequence[Deviation], made: Tensor) -> Tensor:
    product = factors[0]
    for factor in factors[1:]:
        product = torch.mul(product, factor.expand(made.shape), out=made)
    for deviation in deviations:
        product = product.expand(made.shape)
        _deviate(made, product, product, deviation)
        product = made
    return product


def blend(before: Tensor, now: Tensor, rates: Deviation) -> None:
    """Scale what was added to synapses ``before``, of which ``now`` is the sum, in place."""
    if _is_1(rates) or native.blend(now, before, *rates):
        return
    rates = _without_factor(rates, now)
    rate = _rate(rates, scratch("blend", now, wide(now.dtype)))
    # lerp, not before + rate * (now - before): where the rate is 1 it keeps the weight's bits
    torch.lerp(before, now, rate.to(now.dtype), out=now)


def rescale(synapses: Tensor, update: Update, rates: Deviation) -> None:
    """Add what an update lacks to synapses that have just seen it."""
    if not _is_1(rates):
        rates = _without_factor(rates, synapses)
        _deviate(synapses, synapses, update.direction, rates, update.size)


def _is_1(rates: Deviation) -> bool:
    return not (rates.scale or rates.shift) and rates.factor is None


def _without_factor(rates: Deviation, synapses: Tensor) -> Deviation:
    if rates.factor is None:
        return rates
    made = scratch("product", synapses, wide(synapses.dtype))
    return Deviation(_product([rates.factor], [rates._replace(factor=None)], made), shift=-1.0)


def _rate(rates: Deviation, made: Tensor) -> Tensor:
    if rates[1:] == (1.0, None, -1.0, None):
        return rates.values
    return made.copy_(_each(rates)).mul_(rates.scale).add_(1 + rates.shift)


def _each(rates: Deviation) -> Tensor:
    """The values of a deviation, each times the factor of its node."""
    values, nodes = rates.values, rates.nodes
    if nodes is None:
        return values
    if not passes(values):
        return values * nodes
    return scratch("each", values, nodes.dtype).copy_(values).mul_(nodes)


def _deviate(out: Tensor, base: Tensor, change: Tensor, rates: Deviation, size: float = 1.0) -> None:
    """``out = base + size * change * (rates - 1)``."""
    values, scale, nodes, shift, _ = rates
    if native.deviate(out, base, change, values, size * scale, nodes, size * shift):
        return
    each = _each(rates)
    if shift:
        each, scale = torch.mul(each, scale, out=scratch("shifted", each)).add_(shift), 1.0
    torch.addcmul(base, change, _as(out, each), value=size * scale, out=out)


def _as(synapses: Tensor, values: Tensor) -> Tensor:
    """Values in the type of synapses; torch would make new memory for them."""
    if values.dtype == synapses.dtype or values.numel() <= PIECE:
        return values
    return scratch("values", values, synapses.dtype).copy_(values)
