"""What all rates of some synapses are together, and how they scale what was added."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bouton.claim import Claim
from bouton.sites import Deviation, Synapses
from bouton.step.updates import Update
from bouton.tensors.precision import wide
from bouton.tensors.scratch import PIECE, scratch


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
        values, scale = deviations.pop()
        factors = [made.copy_(values).mul_(scale).add_(1)]
    product = factors[0].expand(weight.shape)
    for factor in factors[1:]:
        product = torch.mul(product, factor, out=made)
    for values, scale in deviations:
        product = torch.addcmul(product, product, _as(made, values), value=scale, out=made)
    return product


def rescale(synapses: Tensor, update: Update, deviation: Deviation) -> None:
    """Add the deviation of rates times an update to synapses that have just seen the update."""
    if deviation.scale:
        values, size = _as(synapses, deviation.values), update.size * deviation.scale
        synapses.addcmul_(update.direction, values, value=size)


def _as(synapses: Tensor, values: Tensor) -> Tensor:
    """Values in the type of synapses; torch would make new memory for them."""
    if values.dtype == synapses.dtype or values.numel() <= PIECE:
        return values
    return scratch("values", values, synapses.dtype).copy_(values)
