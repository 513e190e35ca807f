"""Spontaneous spine remodeling: weak synapses are replaced from time to time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bouton.mechanism import Mechanism, register
from bouton.mechanisms.sizes import over_pieces, passing_sizes
from bouton.native.ready import serves
from bouton.native.remodeling import remodel
from bouton.native.sizes import largest_size
from bouton.sites import Rewiring, Synapses
from bouton.tensors.precision import wide


def turnover_chance(weight: Tensor, largest: Tensor, d_re: float) -> Tensor:
    """The probability that each synapse is replaced, where ``largest`` is ``w_max``; see the class.

    It is not a number where ``w_max`` is 0.
    """
    size = weight.to(wide(weight.dtype)).abs()
    return size.mul_(d_re / math.sqrt(2) / largest).erfc_()


def _largest(weight: Tensor) -> Tensor:
    """``w_max`` over the finite weights."""
    if not weight.numel():
        return weight.sum()
    largest = largest_size(weight)
    if largest is not None:
        return largest
    return torch.stack(over_pieces(lambda part: passing_sizes(part).amax(), weight)).amax()


@register(
    paper="Synaptic diversity (Nat. Commun. 16, 2025)",
    neutral=({"every": 1, "d_re": math.inf}, {"every": 1, "d_re": math.inf, "redraw": "published"}),
    examples=({"every": 3}, {"every": 3, "redraw": "published", "reset_moments": False}),
)
@dataclass(frozen=True, kw_only=True)
class SpineRemodeling(Mechanism):
    r"""Redraw small weights at random from time to time; large ones hardly ever.

    .. math:: |w| < t, \quad t = |N(0, w_{\max} / d_{re})| \;\Rightarrow\;
       w \sim U[-1/\sqrt{n}, 1/\sqrt{n}]

    with one threshold ``t`` per synapse, ``w_max = max |W|`` over the finite weights of the layer and ``n``
    its fan-in. A weight ``w`` is replaced with probability ``1 - erf(|w| d_re / (w_max sqrt(2)))``. All
    other weights keep their bits, and so do those that are infinite or not a number. One draw ``u`` from
    (0, 1] decides, and gives the new value: replaced is where ``u`` is not above that probability ``p``,
    and ``u / p`` is uniform again. The draw has 24 bits, so that no weight is replaced whose ``p`` is below
    6e-8.

    Args:
        every: optimizer steps between two events; ``handle.remodel()`` triggers one by hand.
        d_re: how sharply large weights are spared; the larger, the fewer are replaced.
        redraw: ``"init"`` draws from the layer's own fan-in distribution U[-1/sqrt(n), 1/sqrt(n)];
            ``"published"`` from U[-w_max, w_max].
        reset_moments: set the optimizer's state of the replaced entries (momentum, Adam's moments, ...)
            to what a fresh weight has.
        where: see :class:`bouton.Mechanism`.

    Raises:
        ValueError: ``every`` below 1, ``d_re`` not above 0, or an unknown ``redraw``.

    Note:
        When not to use it: with ``redraw="published"`` and a short ``every``. About 10 % of the weights
        turn over at once, and the new ones are as large as the largest: in a prototype, on continual
        permuted Fashion-MNIST and once every 312 steps, online accuracy fell from 0.70 to 0.13. Nor on
        weights of which zeros are to stay zero: a zero is the weakest synapse there is, and is redrawn.
        Under Adam and its kin, ``reset_moments`` lets new synapses move fast: their moments restart, while
        the step count of the bias correction, which is one for the whole weight, does not. Under a
        constant gradient their first steps are 3.1 and later up to 6.4 times the learning rate, where a
        fresh weight's are 1.

    References:
        Hofmann et al., Nature Communications 16, 5112 (2025), doi 10.1038/s41467-025-60078-9.

    Example:
        >>> import bouton, torch
        >>> model = torch.nn.Linear(8, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> handle = bouton.attach(model, optimizer, [bouton.SpineRemodeling(every=100)])
        >>> handle.remodel()
        >>> handle.stats()["SpineRemodeling"]["weight"]["events"]
        1.0
    """

    every: int = 1000
    d_re: float = 8.0
    redraw: Literal["init", "published"] = "init"
    reset_moments: bool = True

    site = "structure"
    in_parts = True
    rowwise = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.every) is not int or self.every < 1:
            raise ValueError(
                f"SpineRemodeling(every={self.every!r}): use a whole number of optimizer steps from 1"
            )
        if not isinstance(self.d_re, int | float) or not self.d_re > 0:
            raise ValueError(f"SpineRemodeling(d_re={self.d_re!r}): use a number above 0")
        if self.redraw not in ("init", "published"):
            raise ValueError(f"SpineRemodeling(redraw={self.redraw!r}): use 'init' or 'published'")

    def survey(self, synapses: Synapses) -> dict[str, Tensor]:
        return {"largest": _largest(synapses.weight)}

    def rule(self, synapses: Synapses) -> Rewiring:
        weight, largest = synapses.weight, self.surveyed(synapses)["largest"]
        bound = largest if self.redraw == "published" else max(synapses.fan_in, 1) ** -0.5
        if serves(weight, largest):
            sharpness, key = self.d_re / math.sqrt(2), synapses.stream.key()
            return Rewiring(*remodel(weight, largest, sharpness, bound, synapses.start, key))
        chance = turnover_chance(weight, largest, self.d_re)
        drawn = synapses.uniform(2.0**-24, 1 + 2.0**-24)  # from (0, 1], or 0 would be below every chance
        changed = drawn <= chance
        # Up to its chance, a draw is uniform there: over the chance it is a second draw from (0, 1].
        return Rewiring(changed, drawn.div_(chance).mul_(2).sub_(1).mul_(bound))
