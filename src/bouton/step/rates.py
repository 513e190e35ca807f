"""The rate site: scale the update that an optimizer has made of a weight."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.optim import Optimizer

from bouton.claim import Claim
from bouton.fused.stepping import Fused
from bouton.sites import Deviation, Synapses
from bouton.step.advance import Advance
from bouton.step.own_step import OwnStep
from bouton.step.pieces import parts_of
from bouton.step.place import Place
from bouton.step.product import blend, rates_of, rescale
from bouton.step.snapshot import Snapshot
from bouton.step.updates import KnownUpdate
from bouton.synapse import SynapseGroup
from bouton.tensors.precision import is_precise
from bouton.tensors.scratch import PIECE, row_pieces, scratch
from bouton.tensors.shards import is_spread, local, spread


class Scaling:
    """All rates of one weight: what they need to see before a step, and how they scale its update."""

    def __init__(self, group: SynapseGroup, claims: Sequence[Claim], advance: Advance | None) -> None:
        self.group, self.claims, self._place = group, claims, Place(group)
        self.own = OwnStep(group, claims, self._place, advance)
        self._in_place = group.layout.views and not is_spread(group.weight)
        self._blind = all(claim.mechanism.blind for claim in claims)
        # Of what was before, an update tells the stored weight alone, and not to the last bit. A small
        # weight is copied in less time than that takes.
        alone = group.stored == group.parameter and not group.companions
        modest = all(claim.mechanism.blind or claim.mechanism.rowwise for claim in claims)
        large = group.weight.numel() > PIECE
        self._can_be_told = self._in_place and (self._blind or (alone and modest and large))
        self._surveyed: list[list[Synapses]] = []

    def seed(self, optimizer: Fused) -> bool:
        """Let a fused optimizer make the rates itself, if it can."""
        claim, weight = self.claims[0], self.group.weight
        if len(self.claims) > 1 or not self._in_place or self.group.layout.transposed:
            return False
        seeded = claim.mechanism.seeded(claim.blocks(weight.detach())[0])
        if seeded is not None:
            optimizer.rates[weight] = seeded
        return seeded is not None

    def begin(self, optimizer: Optimizer, known: KnownUpdate | None, closure: bool = False) -> bool:
        """See the weight before a step; True if a copy of it must be kept.

        ``known``: how the optimizer's state will tell what it added to the weight. ``closure``: forward
        passes may be made within the step.
        """
        group = self.group
        if known is None or not self._can_be_told or not is_precise(group.weight):
            return True
        if closure and any([claim.mechanism.observes for claim in self.claims]):
            return True  # they have yet to see what is surveyed
        if not known.is_told(self._place.settings(optimizer)) or not self._place.is_only:
            return True
        if self.own.fixed is None:
            weight, beside = group.effective(), group.beside()
            self._surveyed = [claim.surveyed(weight, beside) for claim in self.claims]
        return False

    def end(
        self,
        optimizer: Optimizer,
        known: KnownUpdate | None,
        before: Snapshot | None,
        skipped: Tensor | None,
    ) -> None:
        """Scale the update; ``before`` is the copy."""
        weight = self.group.weight
        if isinstance(optimizer, Fused) and weight in optimizer.rates:
            del optimizer.rates[weight]  # scaled already
        elif before is not None:
            self._scale(before, skipped)
        elif known is not None:
            self.claims[0].refuse_sparse(weight.grad)
            if self.own.fixed is None:
                self._rescale(optimizer, known)
            elif weight.grad is not None:
                self._rescale_fixed(optimizer, known, self.own.fixed.of_weight(weight))

    def forget(self, optimizer: Optimizer) -> None:
        """Take back what a step that failed has left with the optimizer."""
        self.own.forget()
        if isinstance(optimizer, Fused):
            optimizer.rates.pop(self.group.weight, None)

    def _rescale_fixed(self, optimizer: Optimizer, known: KnownUpdate, fixed: Deviation) -> None:
        weight, nodes = self.group.weight, self.group.layout.nodes
        settings = self._place.settings(optimizer)
        synapses, values = nodes(weight.detach()), fixed.values
        if synapses.numel() <= PIECE:
            rescale(synapses, known.last(optimizer, settings, weight, nodes), fixed)
            return
        for rows in row_pieces(synapses):
            update = known.last(optimizer, settings, weight, lambda tensor: nodes(tensor)[rows])  # noqa: B023
            own = values[rows] if values.ndim else values
            rescale(synapses[rows], update, fixed._replace(values=own))

    def _rescale(self, optimizer: Optimizer, known: KnownUpdate) -> None:
        weight, settings = self.group.weight, self._place.settings(optimizer)
        seen, self._surveyed = self._surveyed, []
        for view, parts in parts_of(self.group, self.claims, seen):
            now, gradient = view(weight.detach()), weight.grad
            if gradient is None:  # time goes by, and nothing was added
                rates_of(self.claims, [part.but(weight=now) for part in parts], now)
                continue
            update = known.last(optimizer, settings, weight, view)
            if not self._blind:
                kept = scratch("before", now)
                before = torch.add(now, update.direction, alpha=-update.size, out=kept)
                pulls = view(gradient.detach())
                parts = [part.but(weight=before, gradient=pulls) for part in parts]
            rescale(now, update, rates_of(self.claims, parts, now))

    def _scale(self, before: Snapshot, skipped: Tensor | None) -> None:
        weight, claims = self.group.weight, self.claims
        if skipped is not None or not self._in_place:
            arguments = before.effective, weight.grad, before.companions, skipped
            rates = [claim.rate(*arguments, alone=False) for claim in claims]
            rate = reduce(torch.mul, [local(spread(rate, weight)) for rate in rates])
            # lerp, not before + rate * (weight - before): where the rate is 1 it keeps the weight's bits
            torch.lerp(local(before.stored), local(weight), rate, out=local(weight))
            return
        seen = [c.blocks(before.effective, weight.grad, before.companions, alone=False) for c in claims]
        for view, parts in parts_of(self.group, claims, seen):
            now = view(weight.detach())
            blend(view(before.stored), now, rates_of(claims, parts, now))
