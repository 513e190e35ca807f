"""Crystallization: synapses that have settled, or are pulled too hard, learn ever more slowly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bouton.mechanism import Mechanism, register
from bouton.mechanisms.sizes import mean_size, passing_abs, passing_sizes
from bouton.native.rules import crystallize
from bouton.sites import Synapses
from bouton.tensors.precision import wide
from bouton.tensors.scratch import passes

FROZEN = 2.0**-80  # a rate at most as large is set to 0


def crystallizing(weight: Tensor, gradient: Tensor, threshold: float) -> Tensor:
    """Which synapses crystallize: a mask in the shape of ``weight``."""
    return _settled(weight, gradient, threshold).bool()


def _settled(weight: Tensor, gradient: Tensor, threshold: float, most: Tensor | None = None) -> Tensor:
    """The mask as numbers, 0 and 1, which cost a CPU less than truth values; good until the next call.

    ``most`` is the mean size of all weights; by default of those that are given.
    """
    size = passing_sizes(weight)
    most = size.mean() if most is None else most
    pull = passing_abs("pull", gradient)
    # |g| < t |w| and not |g| / |w| < t: the same, and defined where both are zero
    weak, strong = size.mul_(threshold).gt_(pull), pull.gt_(most)
    return torch.maximum(weak, strong, out=weak) if passes(weak) else weak.maximum(strong)


@register(
    paper="Synaptic diversity (Nat. Commun. 16, 2025)",
    neutral=({"factor": 1.0},),
    examples=({}, {"threshold": 0.02, "factor": 0.9}),
)
@dataclass(frozen=True, kw_only=True)
class Crystallization(Mechanism):
    r"""Lower the learning rate of a synapse whenever its gradient is very small or very large.

    .. math:: r \leftarrow 0.6\, r \quad \text{where} \quad
       |g| / |w| < \theta \;\text{ or }\; |g| > \overline{|w|}

    The rates ``r`` have the shape of the weight, no unit, start at 1 and only ever fall; they scale the
    applied update; one that has fallen below 2**-80 is set to 0. ``g`` is the gradient that the optimizer
    saw, and the mean is over the layer, in which a weight that is infinite or not a number counts as 0.

    Args:
        threshold: the share theta of the weight's size under which a gradient counts as settled.
        factor: what a rate is multiplied by, 0 to 1; 1 turns the mechanism off.
        where: see :class:`bouton.Mechanism`.

    Raises:
        ValueError: a negative ``threshold``, or a ``factor`` outside [0, 1].

    Note:
        When not to use it: where gradients are often exactly zero, as behind ReLU or for inputs that are
        always zero (the border of an image). Zero is below every threshold, and a rate that is cut at each
        of 30 steps is 2e-7 (0.6 to the 30th): such a synapse is frozen for good. Nor on tasks that change:
        no rate ever rises again.

    References:
        Hofmann et al., Nature Communications 16, 5112 (2025), doi 10.1038/s41467-025-60078-9.

    Example:
        >>> weight, gradient = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[1e-6, 0.1, 2.0]])
        >>> crystallizing(weight, gradient, threshold=4.5e-5)
        tensor([[ True, False,  True]])
    """

    threshold: float = 4.5e-5
    factor: float = 0.6

    site = "rate"
    in_parts = True
    rowwise = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.threshold, int | float) or not self.threshold >= 0:
            raise ValueError(f"Crystallization(threshold={self.threshold!r}): use a number from 0")
        if not isinstance(self.factor, int | float) or not 0 <= self.factor <= 1:
            raise ValueError(f"Crystallization(factor={self.factor!r}): use a number from 0 to 1")

    def prepare(self, synapses: Synapses) -> dict[str, Tensor]:
        # 16 bits would round a factor near 1 away
        return {"rate": torch.ones_like(synapses.weight, dtype=wide(synapses.weight.dtype))}

    def survey(self, synapses: Synapses) -> dict[str, Tensor]:
        return {"most": mean_size(synapses.weight)}

    def rule(self, synapses: Synapses) -> Tensor:
        rate = synapses.state["rate"]
        if synapses.gradient is not None:
            weight, gradient, known = synapses.weight, synapses.gradient, synapses.survey
            most = None if known is None else known["most"]
            # CPUs are slow with the smallest numbers that they know, at which rates would end up
            if not crystallize(rate, weight, gradient, self.threshold, most, self.factor - 1, FROZEN):
                settled = _settled(weight, gradient, self.threshold, self.surveyed(synapses)["most"])
                rate.addcmul_(rate, settled, value=self.factor - 1)
                if synapses.step % 8 == 0:
                    torch.threshold_(rate, FROZEN, 0.0)
        return rate
