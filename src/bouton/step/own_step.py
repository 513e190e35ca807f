"""A weight's step that is made here, and not by the optimizer, so that rates act while it is made."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bouton.claim import Claim
from bouton.sites import Deviation, Synapses
from bouton.step.advance import Advance
from bouton.step.pieces import parts_of
from bouton.step.place import Place
from bouton.step.product import FixedRates, blend, rates_of
from bouton.step.updates import Settings, View
from bouton.synapse import SynapseGroup
from bouton.tensors.precision import is_precise
from bouton.tensors.scratch import PIECE, scratch
from bouton.tensors.shards import is_spread

_LOST = (
    "a step failed while {0} was kept from the optimizer, and the gradient of then is lost; unless both "
    "were called since, call zero_grad() and backward() again before the next step"
)


class OwnStep:
    """Keeps the optimizer from one weight by its gradient, and makes the step in its place.

    Large weights are stepped piece by piece, so that each stays in the cache. Where step and rates are
    one pass, small weights are stepped here, too: their rates alone would take as long as that.
    """

    def __init__(
        self, group: SynapseGroup, claims: Sequence[Claim], place: Place, advance: Advance | None
    ) -> None:
        self._group, self._claims, self._place, self._advance = group, claims, place, advance
        in_place = group.layout.views and not is_spread(group.weight)
        self._is_possible = in_place and group.stored == group.parameter and not group.companions
        self._has_pieces = group.weight.numel() > PIECE and all(c.mechanism.rowwise for c in claims)
        self._is_whole = group.layout.blocks == 1 and not self._has_pieces
        self.observes = any(claim.mechanism.observes for claim in claims)
        self._view = group.layout.nodes if group.layout.transposed else None
        self._each_fixed = [FixedRates.of(claim) for claim in claims]
        self.fixed = self._each_fixed[0] if len(claims) == 1 else None
        self._settings: Settings = {}  # of the weight, within a step
        self._withheld: Tensor | None = None  # the gradient, within a step
        self.is_due = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_settings": {}, "_withheld": None, "is_due": False}

    def take(self, optimizer: Optimizer) -> bool:
        """Keep the optimizer from the weight, if its step can be made here and is better made here."""
        advance, weight = self._advance, self._group.weight
        gradient = weight.grad
        if advance is None or not self._is_possible:
            return False
        if gradient is None or gradient.layout is not torch.strided:
            return False
        settings = advance.ready(optimizer, self._place, weight, self._has_pieces and is_precise(weight))
        if settings is None:
            return False
        self._settings, self._withheld = settings, gradient
        weight.grad = None  # so that the optimizer skips it
        return True

    def give_back(self) -> bool:
        """Give the weight the gradient that was withheld from the optimizer; False if none was."""
        if self._withheld is None:
            return False
        self._group.weight.grad, self._withheld, self.is_due = self._withheld, None, True
        return True

    def forget(self) -> None:
        """Take back what a step that failed has left."""
        if self._withheld is not None:
            warnings.warn(_LOST.format(self._group.name), stacklevel=6)
        self._withheld, self.is_due = None, False

    def make(self, optimizer: Optimizer) -> None:
        """Make the step, of one part of the weight after another; where a rule fails, plainly."""
        weight, advance, claims = self._group.weight, self._advance, self._claims
        assert advance is not None
        if self.fixed is not None:
            fixed = self.fixed.of_weight(weight)
            if advance.scaled(optimizer, self._settings, weight, self._view, fixed):
                self.is_due = False
                advance.finish(optimizer, weight)
                return
        now, failure = weight.detach(), None
        for view, own in self._parts(now):
            rates = None
            if failure is None:
                try:
                    rates = rates_of(claims, own, now if view is None else view(now))
                except BaseException as error:
                    failure = error
            self.is_due = False
            if rates is None or not advance.scaled(optimizer, self._settings, weight, view, rates):
                self._make_part(optimizer, view, rates)
        advance.finish(optimizer, weight)
        if failure is not None:
            raise failure

    def _parts(self, now: Tensor) -> Iterable[tuple[View | None, Sequence[Synapses | Deviation]]]:
        """What the rules see of one part of the weight after another, with a view of that part."""
        claims, pull = self._claims, self._group.weight.grad
        alone = self.observes  # which would have kept other processes from here
        if not self._is_whole:
            seen = [claim.blocks(now, pull, alone=alone) for claim in claims]
            return parts_of(self._group, claims, seen)
        own: list[Synapses | Deviation] = []
        for claim, fixed in zip(claims, self._each_fixed, strict=True):
            own.append(fixed.of_weight(now) if fixed else claim.blocks(now, pull, alone=alone)[0])
        return [(self._view, own)]

    def make_plain(self, optimizer: Optimizer) -> None:
        """Make the step without rates, if it is due."""
        if self.is_due:
            assert self._advance is not None
            self.is_due = False
            self._make_part(optimizer, None, None)
            self._advance.finish(optimizer, self._group.weight)

    def _make_part(self, optimizer: Optimizer, view: View | None, rates: Deviation | None) -> None:
        weight, advance = self._group.weight, self._advance
        assert advance is not None
        view = view or self._group.layout.nodes
        now = view(weight.detach())
        before = None if rates is None else scratch("before", now).copy_(now)
        advance.part(optimizer, self._settings, weight, view)
        if rates is not None and before is not None:
            blend(before, now, rates)
