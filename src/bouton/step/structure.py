"""The structure site: write what a rule makes of a weight."""

from __future__ import annotations

import torch
from torch import Tensor

from bouton.claim import Claim
from bouton.step.pieces import pieces
from bouton.synapse import SynapseGroup
from bouton.tensors.bitmask import put_where
from bouton.tensors.shards import is_spread, local, spread


def rewire(group: SynapseGroup, claim: Claim, spared: Tensor | None, skipped: Tensor | None) -> Tensor:
    """Let a structure rule rewire a weight; which synapses changed, in the weight's shape.

    The ``spared`` ones stay as they are. ``skipped``: see :meth:`Claim.kept`.
    """
    weight, seen = group.weight, (group.effective(), group.weight.grad, group.beside())
    if skipped is not None or is_spread(weight) or not group.layout.views:
        changed, values = (spread(tensor, weight) for tensor in claim.rewire(*seen, skipped))
        if spared is not None:
            changed = changed & ~spread(spared, weight)
        torch.where(local(changed), local(values), local(weight), out=local(weight))
        return changed
    claim.memory.settle()
    split, changed = group.layout.split, torch.empty_like(weight, dtype=torch.bool)
    blocks = zip(split(weight.detach()), split(changed), claim.blocks(*seen, alone=False), strict=True)
    kept = None if spared is None else split(spared)
    for block, (nodes, mask, own) in enumerate(blocks):
        for rows, (synapses,) in pieces([claim], [own]):
            made, values = claim.rewiring(synapses)
            if kept is not None:
                made = made & ~kept[block][rows]
            put_where(made, values.to(weight.dtype), nodes[rows])
            mask[rows] = made
    return changed
