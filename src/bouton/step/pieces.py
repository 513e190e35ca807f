"""Some nodes after another, as the rules of several claims see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from bouton.claim import Claim
from bouton.sites import Synapses
from bouton.step.updates import View
from bouton.synapse import SynapseGroup
from bouton.tensors.scratch import row_pieces


def parts_of(
    group: SynapseGroup, claims: Sequence[Claim], seen: Sequence[Sequence[Synapses]]
) -> Iterator[tuple[View, Sequence[Synapses]]]:
    """What the rules see of one part of a weight after another, with a view of that part.

    ``seen``: for each claim what its rule sees of each block.
    """
    split = group.layout.split
    for block, own in enumerate(zip(*seen, strict=True)):
        for rows, parts in pieces(claims, own):

            def view(tensor: Tensor, block: int = block, rows: slice = rows) -> Tensor:
                return split(tensor)[block][rows]

            yield view, parts


def pieces(claims: Sequence[Claim], own: Sequence[Synapses]) -> Iterator[tuple[slice, Sequence[Synapses]]]:
    """The nodes of one block of a weight in parts; in one part where a rule needs to see all of them."""
    weight = own[0].weight
    slices = list(row_pieces(weight)) if all(claim.mechanism.rowwise for claim in claims) else []
    if len(slices) < 2:
        yield slice(None), own
        return
    own = [
        synapses.but(survey=claim.mechanism.surveyed(synapses))
        for synapses, claim in zip(own, claims, strict=True)
    ]
    counts = [synapses.stream.count for synapses in own]
    for rows in slices:
        for synapses, count in zip(own, counts, strict=True):
            synapses.stream.count = count  # a draw for the whole weight, of which each piece takes a part
        yield rows, [synapses.rows(rows.start, rows.stop) for synapses in own]
