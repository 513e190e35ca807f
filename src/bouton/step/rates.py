"""The rate site: scale the update that an optimizer has made of a weight."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.optim import Optimizer

from bouton.claim import Claim
from bouton.fused.rates import SeededRates
from bouton.fused.stepping import Fused
from bouton.sites import Deviation, Synapses
from bouton.step.advance import Advance
from bouton.step.pieces import pieces
from bouton.step.product import blend, rates_of, rescale
from bouton.step.snapshot import Snapshot
from bouton.step.updates import KnownUpdate, Settings, View
from bouton.synapse import SynapseGroup
from bouton.tensors.precision import is_precise
from bouton.tensors.processes import process_count
from bouton.tensors.scratch import PIECE, row_pieces, scratch
from bouton.tensors.shards import is_spread, local, spread

_LOST = (
    "the last step failed while {0} was kept from the optimizer, and its gradient is lost; call "
    "zero_grad() and backward() again before the next step"
)


class Scaling:
    """All rates of one weight: what they need to see before a step, and how they scale its update."""

    def __init__(self, group: SynapseGroup, claims: Sequence[Claim], advance: Advance | None) -> None:
        self.group, self.claims, self._advance = group, claims, advance
        self._in_place = group.layout.views and not is_spread(group.weight)
        self._blind = all(claim.mechanism.blind for claim in claims)
        # Of what was before, an update tells the stored weight alone, and not to the last bit. A small
        # weight is copied in less time than that takes.
        own = self._in_place and group.stored == group.parameter and not group.companions
        modest = all(claim.mechanism.blind or claim.mechanism.rowwise for claim in claims)
        large = group.weight.numel() > PIECE
        self._can_be_told = self._in_place and (self._blind or (own and modest and large))
        self._can_be_ours = own
        self._has_parts = large and all(claim.mechanism.rowwise for claim in claims)
        self._withheld: Tensor | None = None  # the gradient, within a step that is made here
        self._is_ours = False  # the step that is under way
        self._place: tuple[int, int] | None = None  # of the weight among the optimizer's parameters
        self._is_listed_once = True
        self._surveyed: list[list[Synapses]] = []
        alone = len(claims) == 1 and group.layout.blocks == 1
        self._is_fixed = alone and claims[0].mechanism.fixed
        self._fixed: tuple[object, Deviation] | None = None  # of which states, and what

    def begin(
        self,
        optimizer: Optimizer,
        known: KnownUpdate | None,
        undisturbed: bool = False,
        closure: bool = False,
    ) -> bool:
        """See the weight before a step; True if a copy of it must be kept.

        ``known``: how the optimizer's state will tell what it added to the weight. ``undisturbed``: nobody
        sees it if the optimizer is kept from the weight. ``closure``: forward passes may be made within the
        step.
        """
        group = self.group
        if isinstance(optimizer, Fused):
            seeded = self._seeded()
            if seeded is not None:
                optimizer.rates[group.weight] = seeded
                return False
        if undisturbed and self._is_to_be_ours(optimizer):
            self._withheld, group.weight.grad = group.weight.grad, None  # so that the optimizer skips it
            return False
        if known is None or not self._can_be_told or not is_precise(group.weight):
            return True
        if closure and any([claim.mechanism.observes for claim in self.claims]):
            return True  # they have yet to see what is surveyed
        if not known.is_told(self._settings(optimizer)) or not self._is_listed_once:
            return True
        if not self._is_fixed:
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
            return
        if before is not None:
            self._scale(before, skipped)
        elif self._is_ours:
            self._is_ours = False
            self._step(optimizer)
        elif known is not None:
            self.claims[0].refuse_sparse(weight.grad)
            if not self._is_fixed:
                self._rescale(optimizer, known)
            elif weight.grad is not None:
                self._rescale_fixed(optimizer, known, self._fixed_deviation())

    def forget(self, optimizer: Optimizer) -> None:
        """Take back what a step that failed has left with the optimizer."""
        if self._withheld is not None and self.group.weight.grad is None:
            warnings.warn(_LOST.format(self.group.name), stacklevel=5)
        self._withheld, self._is_ours = None, False
        if isinstance(optimizer, Fused):
            optimizer.rates.pop(self.group.weight, None)

    def give_back(self) -> None:
        """Give the weight back the gradient that was withheld from the optimizer."""
        if self._withheld is not None:
            self.group.weight.grad, self._withheld, self._is_ours = self._withheld, None, True

    def _is_to_be_ours(self, optimizer: Optimizer) -> bool:
        weight, advance = self.group.weight, self._advance
        if advance is None or not self._can_be_ours:
            return False
        if not (self._has_parts or advance.is_one_pass(weight)):
            return False  # and a copy, or telling the update, takes less time
        if weight.grad is None or weight.grad.layout != torch.strided or not is_precise(weight):
            return False
        if process_count() > 1 and any([claim.mechanism.observes for claim in self.claims]):
            return False  # processes meet for a survey, and must meet in one order
        settings = self._settings(optimizer)
        return self._is_listed_once and advance.is_ready(optimizer, settings, weight)

    def _seeded(self) -> SeededRates | None:
        """Rates that a fused optimizer makes itself."""
        if len(self.claims) > 1 or not self._in_place or self.group.layout.transposed:
            return None
        claim, weight = self.claims[0], self.group.weight
        return claim.mechanism.seeded(claim.blocks(weight.detach())[0])

    def _settings(self, optimizer: Optimizer) -> Settings:
        """The weight's parameter group."""
        if self._place is not None:
            group, place = self._place
            try:
                settings: Settings = optimizer.param_groups[group]
                if settings["params"][place] is self.group.weight:
                    return settings
            except IndexError:
                pass
        for group, settings in enumerate(optimizer.param_groups):
            places = [n for n, weight in enumerate(settings["params"]) if weight is self.group.weight]
            if places:
                self._place, self._is_listed_once = (group, places[0]), len(places) == 1
                return settings
        raise ValueError(
            f"{self.group.name} is no longer among the optimizer's parameters; detach the handle, and "
            "attach again with the optimizer that steps it"
        )

    def _fixed_deviation(self) -> Deviation:
        """The deviation of rates that never change, for the whole weight."""
        claim, weight = self.claims[0], self.group.weight
        states = claim.memory.states  # another list once a state was loaded
        if (
            self._fixed is None
            or self._fixed[0] is not states
            or self._fixed[1].values.device != weight.device
        ):
            (synapses,) = claim.blocks(weight.detach())
            deviation = claim.mechanism.deviation(synapses)
            assert deviation is not None
            self._fixed = (states, deviation)
        return self._fixed[1]

    def _rescale_fixed(self, optimizer: Optimizer, known: KnownUpdate, fixed: Deviation) -> None:
        weight, nodes, settings = self.group.weight, self.group.layout.nodes, self._settings(optimizer)
        synapses, values = nodes(weight.detach()), fixed.values
        if synapses.numel() <= PIECE:
            rescale(synapses, known.last(optimizer, settings, weight, nodes), fixed)
            return
        for rows in row_pieces(synapses):
            update = known.last(optimizer, settings, weight, lambda tensor: nodes(tensor)[rows])  # noqa: B023
            own = values[rows] if values.ndim else values
            rescale(synapses[rows], update, fixed._replace(values=own))

    def _rescale(self, optimizer: Optimizer, known: KnownUpdate) -> None:
        weight, settings = self.group.weight, self._settings(optimizer)
        seen, self._surveyed = self._surveyed, []
        for view, parts in self._parts(seen):
            now, gradient = view(weight.detach()), weight.grad
            if gradient is None:  # time goes by, and nothing was added
                rates_of(self.claims, [part.but(weight=now) for part in parts])
                continue
            update = known.last(optimizer, settings, weight, view)
            if not self._blind:
                kept = scratch("before", now)
                before = torch.add(now, update.direction, alpha=-update.size, out=kept)
                pulls = view(gradient.detach())
                parts = [part.but(weight=before, gradient=pulls) for part in parts]
            rescale(now, update, rates_of(self.claims, parts))

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
        for view, parts in self._parts(seen):
            blend(view(before.stored), view(weight.detach()), rates_of(self.claims, parts))

    def _step(self, optimizer: Optimizer) -> None:
        """Step one part of the weight after another, and scale what was added while it is in the cache."""
        weight, settings, advance = self.group.weight, self._settings(optimizer), self._advance
        assert advance is not None
        step = optimizer, settings, weight
        nodes = self.group.layout.nodes
        if not (self._is_fixed and advance.scaled(*step, nodes, self._fixed_deviation(), stays=True)):
            seen = [claim.blocks(weight.detach(), weight.grad, alone=False) for claim in self.claims]
            for view, parts in self._parts(seen):
                rates = rates_of(self.claims, parts)
                if not advance.scaled(*step, view, rates):
                    now = view(weight.detach())
                    before = scratch("before", now).copy_(now)
                    advance.part(*step, view)
                    blend(before, now, rates)
        advance.finish(optimizer, weight)

    def _parts(self, seen: list[list[Synapses]]) -> Iterator[tuple[View, Sequence[Synapses]]]:
        """What the rules see of one part of the weight after another, with a view of that part."""
        split = self.group.layout.split
        for block, own in enumerate(zip(*seen, strict=True)):
            for rows, parts in pieces(self.claims, own):

                def view(tensor: Tensor, block: int = block, rows: slice = rows) -> Tensor:
                    return split(tensor)[block][rows]

                yield view, parts
