"""A step of torch's SGD with rates in one pass over a weight, where that gives torch's own bits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from bouton.native.library import Rates, Sgd
from bouton.native.rates import as_rates
from bouton.native.ready import able, ready

Deviation = tuple[Tensor, float, Tensor | None, float, Tensor | None]  # as bouton.Deviation


class SgdStep:
    """The step of :class:`torch.optim.SGD` on synapses that each have their rate.

    What stays from step to step is looked at once, because that takes as long as a step of a small weight.
    """

    def __init__(self) -> None:
        # weight and buffer, if they can be read
        self._seen: tuple[int, int | None, torch.Size] | None = None
        self._rates: tuple[Deviation, Rates] | None = None

    def __reduce__(self) -> tuple[type[SgdStep], tuple[()]]:
        return SgdStep, ()  # a copy has memory of its own

    def __call__(
        self,
        weight: Tensor,
        gradient: Tensor | None,
        buffer: Tensor | None,
        rates: Deviation,
        settings: Mapping[str, Any],
    ) -> bool:
        """Make it in place, where nothing watches; False where the loop does not serve."""
        if gradient is None or (loops := able(gradient)) is None:
            return False
        other = weight if buffer is None else buffer
        if not (weight.shape == gradient.shape == other.shape) or weight.dtype is not other.dtype:
            return False
        if not (weight.is_contiguous() and other.is_contiguous()):
            return False
        place, moved = weight.data_ptr(), None if buffer is None else buffer.data_ptr()
        seen = place, moved, weight.shape
        if self._seen != seen:
            if able(weight, other) is None:
                return False
            self._seen, self._rates = seen, None
        known = self._rates
        if known is not None and (known[0] is rates or _lie_alike(known[0], rates)):
            given = known[1]
            given.scale, given.shift = rates[1], rates[3]
        else:
            found = as_rates(weight, *rates)
            if found is None:
                return False
            given, self._rates = found, (rates, found)
        own = Sgd(
            settings["lr"],
            settings["momentum"],
            1 - settings["dampening"],
            settings["weight_decay"],
            settings["nesterov"],
            -1.0 if settings["maximize"] else 1.0,
        )
        loops.sgd(place, gradient.data_ptr(), moved, own, given, torch.get_num_threads())
        return True


def _lie_alike(one: Deviation, other: Deviation) -> bool:
    """Whether two rates have their numbers in the same memory."""
    return one[0] is other[0] and one[2] is other[2] and one[4] is other[4]


def is_torchs() -> bool:
    """Whether the loop is there, and makes the step of torch to the bit; tried once."""
    return ready() is not None and _is_torchs()  # and not tried where it cannot serve now


@cache
def _is_torchs() -> bool:
    return all(
        _agrees(
            lr=0.1,
            momentum=momentum,
            dampening=dampening,
            weight_decay=decay,
            nesterov=nesterov,
            maximize=up,
        )
        for momentum, dampening, decay, nesterov, up in (
            (0.0, 0.0, 0.1, False, True),
            (0.9, 0.3, 0.1, False, True),
            (0.9, 0.0, 0.0, True, False),
        )
    )


def _agrees(**settings: Any) -> bool:
    generator = torch.Generator().manual_seed(0)
    # a number that leaves something over of vectors of any width, which is added in other instructions
    drawn = torch.randn(3, 1031, 1, generator=generator, dtype=torch.float32, device="cpu")
    (weight, gradient, buffer), (own, _, kept) = drawn.clone(), drawn
    moves = settings["momentum"] > 0
    sgd([weight], [gradient], [buffer if moves else None], **settings)
    plain = torch.ones_like(own), 0.0, None, 0.0, None
    stepped = SgdStep()(own, gradient, kept if moves else None, plain, settings)
    return stepped and torch.equal(own, weight) and torch.equal(kept, buffer)
