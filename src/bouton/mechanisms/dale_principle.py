"""Dale's principle: all synapses of a node are excitatory, or all are inhibitory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bouton.mechanism import Mechanism, register
from bouton.mechanisms.sizes import sizes
from bouton.sites import Rewiring, Synapses
from bouton.synapse import SynapseGroup
from bouton.tensors.precision import wide
from bouton.tensors.shards import whole


def nearest_signs(weight: Tensor, excitatory: float | None = None) -> Tensor:
    """The sign of each node of a weight ``[node, synapses of that node]``: 1 or -1, shape ``[node]``.

    Without ``excitatory``, each node takes the sign that loses less of the sum of its squared weights, and
    1 where that is the same. With it, ``round(excitatory * nodes)`` nodes take 1: those that are most
    positive by that measure. Synapses that are infinite or not a number count for nothing.
    """
    weights = weight.to(wide(weight.dtype)).nan_to_num(0.0, 0.0, 0.0)
    largest = sizes(weights).amax(1, keepdim=True) if weight.numel() else weights.sum(1, keepdim=True)
    # of shares of a node's largest weight, because squares of the weights may be 0 or infinite
    shares = weights / largest.clamp_min(torch.finfo(weights.dtype).tiny)
    balance = (shares * shares.abs()).sum(1)
    if excitatory is None:
        positive = balance >= 0
    else:
        root = balance.sign() * balance.abs().sqrt()
        order = (root * largest.squeeze(1)).argsort(descending=True, stable=True)
        positive = torch.zeros_like(balance, dtype=torch.bool)
        positive[order[: round(excitatory * len(order))]] = True
    return torch.where(positive, 1.0, -1.0).to(weight.dtype)


def _no_column(group: SynapseGroup) -> str | None:
    """Why the synapses that one presynaptic node has here are not one column of each block."""
    if group.layout.blocks > 1:
        reason = f"packs {group.layout.blocks} blocks, in each of which a presynaptic node has synapses"
    elif any(isinstance(layer, nn.Bilinear) for layer in group.layers):
        reason = "has two presynaptic nodes at each synapse"
    elif any(getattr(layer, "groups", 1) > 1 for layer in group.layers):
        reason = "has another presynaptic node in the same place of each group"
    else:
        return None
    return f"{reason}; use signs='incoming'"


@register(
    paper="Synaptic diversity (Nat. Commun. 16, 2025)",
    neutral=({"share": 0.0}, {"share": 0.0, "signs": "incoming", "excitatory": 0.8}),
    examples=({}, {"signs": "incoming"}, {"share": 0.5, "excitatory": 0.8}),
)
@dataclass(frozen=True, kw_only=True)
class DalePrinciple(Mechanism):
    r"""Keep one sign for all synapses of a node.

    .. math:: w \leftarrow s \max(s w, 0), \qquad s \in \{1, -1\} \text{ fixed per node}

    after every optimizer step: a weight ``[node, fan-in...]`` that crossed zero is set to 0, and grows
    again only towards its node's side. The signs ``s`` are chosen at ``attach`` from the weights as they
    are then (of those that are finite), so that as little as possible is lost; ``attach`` itself changes no
    weight. The first step, or ``handle.remodel()`` before it, sets all weights of the wrong sign to 0. The
    read-out is left as it is. Signs belong to a weight: a node that feeds several layers has one in each.

    Args:
        signs: ``"outgoing"``: one sign per presynaptic node, which is a column of a weight matrix, or an
            input channel of a convolution. This is Dale's principle: a neuron excites all of its targets,
            or inhibits all of them. ``"incoming"``: one sign per node of the layer, which is a row, or an
            output channel: what a node receives has one sign. The published code does this in dense layers.
        excitatory: share of the nodes whose sign is positive, 0 to 1, in cortex about 0.8; those are taken
            whose weights are most positive. None lets each node choose its own sign.
        share: share of the nodes that obey, drawn at random; 0 turns the mechanism off.
        reset_moments: set the optimizer's state of the weights that crossed zero to what a fresh weight
            has. It costs a pass over that state in every step, and under Adam it makes a weight's first
            steps back larger (see :class:`bouton.SpineRemodeling`).
        where: see :class:`bouton.Mechanism`.

    Raises:
        ValueError: an unknown ``signs``, or a share outside [0, 1].

    Note:
        When not to use it: on a trained network that is to keep its function, or on a fresh one without
        thought: of weights with random signs it sets nearly half to 0. To keep their sizes, as the
        published code does when it converts a model, give each node one sign before ``attach``, which
        finds it: ``layer.weight.copy_(layer.weight.abs() * signs)`` under ``torch.no_grad()``. Nor behind
        nodes whose output has both signs (tanh, or the inputs of a normalised first layer, which
        ``where=`` leaves out): a node that excites with one sign of its output inhibits with the other.
        Beside :class:`bouton.SpineRemodeling`, half of the new synapses have the wrong sign and are 0 at
        once.

    References:
        Hofmann et al., Nature Communications 16, 5112 (2025), doi 10.1038/s41467-025-60078-9.

    Example:
        >>> import bouton, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[3.0, 1.0], [-1.0, -2.0]]))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> handle = bouton.attach(model, optimizer, [bouton.DalePrinciple()])
        >>> handle.remodel()
        >>> model[0].weight.tolist()
        [[3.0, 0.0], [0.0, -2.0]]
    """

    signs: Literal["outgoing", "incoming"] = "outgoing"
    excitatory: float | None = None
    share: float = 1.0
    reset_moments: bool = False

    site = "structure"
    in_parts = True
    rowwise = True
    last = True  # so that what other mechanisms wrote obeys, too

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.signs not in ("outgoing", "incoming"):
            raise ValueError(f"DalePrinciple(signs={self.signs!r}): use 'outgoing' or 'incoming'")
        for name in ("excitatory", "share"):
            value = getattr(self, name)
            if name == "excitatory" and value is None:
                continue
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"DalePrinciple({name}={value!r}): use a number from 0 to 1")

    def serves(self, group: SynapseGroup) -> str | None:
        if group.readout:
            return "the read-out speaks for and against each class, which takes both signs"
        if group.lookup:
            return "an embedding's rows are looked up, so that no node sums over synapses"
        return _no_column(group) if self.signs == "outgoing" else None

    def prepare(self, synapses: Synapses) -> dict[str, Tensor]:
        weight = whole(synapses.weight)
        axis = 1 if self.signs == "outgoing" else 0
        sign = nearest_signs(weight.transpose(0, axis).flatten(1), self.excitatory)
        chance = torch.rand(sign.shape, generator=synapses.generator(), device=sign.device)
        free = chance.argsort()[round(self.share * len(sign)) :]
        sign[free] = 0  # no weight is on the wrong side of 0
        return {"sign": sign.reshape([-1 if other == axis else 1 for other in range(weight.ndim)])}

    def rule(self, synapses: Synapses) -> Rewiring:
        changed = synapses.weight * synapses.state["sign"] < 0
        return Rewiring(changed, synapses.weight.new_zeros(()).expand_as(synapses.weight))
