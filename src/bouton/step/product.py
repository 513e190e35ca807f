"""What all rates of some synapses are together, and how they scale what was added."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bouton.claim import Claim
from bouton.native import calls as native
from bouton.sites import Deviation, Synapses
from bouton.step.updates import Update
from bouton.tensors.precision import wide
from bouton.tensors.scratch import PIECE, passes, scratch


def deviation_of(claims: Sequence[Claim], parts: Sequence[Synapses]) -> Deviation:
    """How much the product of all rates differs from 1."""
    if len(parts) == 1:
        known = claims[0].mechanism.deviation(parts[0])
        if known is not None:
            return known
        factor = claims[0].factor(parts[0])  # may be one for each node
        return Deviation(torch.sub(factor, 1, out=scratch("product", factor)))
    product = product_of(claims, parts)
    return Deviation(torch.sub(product, 1, out=scratch("product", product)))


def product_of(claims: Sequence[Claim], parts: Sequence[Synapses]) -> Tensor:
    """The product of all rates, which may be in memory that is used again, or a mechanism's own."""
    factors, deviations = [], []
    for claim, part in zip(claims, parts, strict=True):
        known = claim.mechanism.deviation(part)
        if known is None:
            factors.append(claim.factor(part))
        else:
            deviations.append(known)
    weight = parts[0].weight
    made = scratch("product", weight, wide(weight.dtype))
    if not factors:
        factors = [_rate(deviations.pop(), made)]
    product = factors[0].expand(weight.shape)
    for factor in factors[1:]:
        product = torch.mul(product, factor, out=made)
    for deviation in deviations:
        _deviate(made, product, product, deviation)
        product = made
    return product


def rates_of(claims: Sequence[Claim], parts: Sequence[Synapses]) -> Deviation | Tensor:
    """The product of all rates, as what it differs from 1 by where that is known."""
    known = claims[0].mechanism.deviation(parts[0]) if len(parts) == 1 else None
    return product_of(claims, parts) if known is None else known


def blend(before: Tensor, now: Tensor, rates: Deviation | Tensor) -> None:
    """Scale what was added to synapses ``before``, of which ``now`` is the sum, in place."""
    if isinstance(rates, Deviation):
        if not rates.scale or native.blend(now, before, *rates):
            return
        rates = _rate(rates, scratch("product", now, wide(now.dtype)))
    # lerp, not before + rate * (now - before): where the rate is 1 it keeps the weight's bits
    torch.lerp(before, now, rates.to(now.dtype), out=now)


def _rate(deviation: Deviation, made: Tensor) -> Tensor:
    return made.copy_(_each(deviation)).mul_(deviation.scale).add_(1)


def _each(deviation: Deviation) -> Tensor:
    """The values of a deviation, each times the factor of its node."""
    values, _, nodes = deviation
    if nodes is None:
        return values
    if not passes(values):
        return values * nodes
    return scratch("each", values, nodes.dtype).copy_(values).mul_(nodes)


def rescale(synapses: Tensor, update: Update, deviation: Deviation) -> None:
    """Add the deviation of rates times an update to synapses that have just seen the update."""
    if deviation.scale:
        _deviate(synapses, synapses, update.direction, deviation, update.size)


def _deviate(out: Tensor, base: Tensor, change: Tensor, deviation: Deviation, size: float = 1.0) -> None:
    """``out = base + size * change * deviation``."""
    values, scale, nodes = deviation
    scale *= size
    if native.deviate(out, base, change, values, scale, nodes):
        return
    torch.addcmul(base, change, _as(out, _each(deviation)), value=scale, out=out)


def _as(synapses: Tensor, values: Tensor) -> Tensor:
    """Values in the type of synapses; torch would make new memory for them."""
    if values.dtype == synapses.dtype or values.numel() <= PIECE:
        return values
    return scratch("values", values, synapses.dtype).copy_(values)
