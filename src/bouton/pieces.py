"""Some nodes after another: what a rule makes of so many synapses stays in a CPU's cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bouton.claim import Claim
from bouton.sites import Synapses

PIECE = 1 << 18  # synapses

ALL = slice(None)


def pieces(claims: Sequence[Claim], own: Sequence[Synapses]) -> Iterator[tuple[slice, Sequence[Synapses]]]:
    """The nodes of one block of a weight in parts, as each claim's rule sees them.

    On other devices, and where a rule needs to see all nodes, there is one part.
    """
    weight = own[0].weight
    few = weight.numel() <= PIECE or weight.device.type != "cpu"
    if few or not all(claim.mechanism.rowwise for claim in claims):
        yield ALL, own
        return
    for synapses, claim in zip(own, claims, strict=True):
        synapses.survey = claim.mechanism.surveyed(synapses)
    counts = [synapses.stream.count for synapses in own]
    size = max(PIECE // own[0].fan_in, 1)
    for first in range(0, len(weight), size):
        for synapses, count in zip(own, counts, strict=True):
            synapses.stream.count = count  # a draw for the whole weight, of which each piece takes a part
        yield slice(first, first + size), [synapses.rows(first, first + size) for synapses in own]
