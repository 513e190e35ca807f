"""The rate site: scale the update that an optimizer has made of a weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from bouton.claim import Claim
from bouton.shards import is_spread, local, spread
from bouton.sites import Deviation, Synapses
from bouton.snapshot import Snapshot
from bouton.synapse import SynapseGroup
from bouton.updates import Rescale

PIECE = 1 << 18  # synapses that a CPU takes at a time, so that what a rule makes of them stays in its cache


def all_blind(group: SynapseGroup, claims: Sequence[Claim]) -> bool:
    """Whether no rule needs the weight as it was before the step."""
    blind = all(claim.mechanism.blind for claim in claims)
    return blind and group.layout.views and not is_spread(group.weight)


def survey(group: SynapseGroup, claim: Claim) -> list[Synapses]:
    """Let a blind rule see the weight before the step."""
    claim.memory.settle()
    blocks = claim.blocks(group.effective(), None, group.beside(), alone=False)
    for synapses in blocks:
        synapses.survey = claim.mechanism.survey(synapses)
    return blocks


def rescale_known(
    group: SynapseGroup, claims: Sequence[Claim], surveyed: Sequence[list[Synapses]], rescale: Rescale
) -> None:
    """Scale an update that the optimizer's state tells; ``surveyed`` has a list for each claim."""
    gradient, split = group.weight.grad, group.layout.split
    for block, own in enumerate(zip(*surveyed, strict=True)):
        for synapses, claim in zip(own, claims, strict=True):
            claim.refuse_sparse(gradient)
            synapses.step = claim.memory.step
        for rows, parts in pieces(claims, own):
            rescale(lambda tensor: split(tensor.detach())[block][rows], _deviation(claims, parts))  # noqa: B023


def rescale_copied(
    group: SynapseGroup, claims: Sequence[Claim], before: Snapshot, skipped: Tensor | None
) -> None:
    """Scale an update that a copy of the weight tells."""
    weight = group.weight
    if is_spread(weight) or not group.layout.views or skipped is not None:
        arguments = before.effective, weight.grad, before.companions, skipped
        rates = [claim.rate(*arguments, alone=False) for claim in claims]
        rate = reduce(torch.mul, [local(spread(rate, weight)) for rate in rates])
        # lerp, not before + rate * (weight - before): where the rate is 1 it keeps the weight's bits
        torch.lerp(local(before.stored), local(weight), rate, out=local(weight))
        return
    split = group.layout.split
    seen = [claim.blocks(before.effective, weight.grad, before.companions, alone=False) for claim in claims]
    for block, (old, new) in enumerate(zip(split(before.stored), split(weight.detach()), strict=True)):
        own = [blocks[block] for blocks in seen]
        for rows, parts in pieces(claims, own):
            factors = [claim.factor(part) for claim, part in zip(claims, parts, strict=True)]
            rate = reduce(torch.mul, factors).to(weight.dtype)
            torch.lerp(old[rows], new[rows], rate, out=new[rows])


def pieces(claims: Sequence[Claim], own: Sequence[Synapses]) -> Iterator[tuple[slice, list[Synapses]]]:
    """Some nodes of a block after another, as each claim's rule sees them."""
    weight = own[0].weight
    nodes = len(weight)
    rowwise = all(claim.mechanism.rowwise for claim in claims)
    if not rowwise or weight.numel() <= PIECE or weight.is_cuda:
        yield slice(None), list(own)
        return
    for synapses, claim in zip(own, claims, strict=True):
        synapses.survey = claim.mechanism.surveyed(synapses)
    counts = [synapses.stream.count for synapses in own]
    size = max(PIECE // own[0].fan_in, 1)
    for first in range(0, nodes, size):
        for synapses, count in zip(own, counts, strict=True):
            synapses.stream.count = count  # a draw for the whole weight, of which each piece takes a part
        rows = slice(first, first + size)
        yield rows, [synapses.rows(first, first + size) for synapses in own]


def _deviation(claims: Sequence[Claim], parts: Sequence[Synapses]) -> Deviation:
    """How much the product of all rates differs from 1."""
    if len(claims) == 1:
        known = claims[0].mechanism.deviation(parts[0])
        if known is not None:
            return known
    factors = [claim.factor(part) for claim, part in zip(claims, parts, strict=True)]
    return Deviation(reduce(torch.mul, factors) - 1)
