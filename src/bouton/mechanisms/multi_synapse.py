"""Multi-synaptic connectivity: several synapses lead from one node to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bouton.mechanism import Mechanism, register
from bouton.passes.pooling import pool
from bouton.sites import Synapses
from bouton.synapse import SynapseGroup

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda output: output,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}


def pool_nodes(
    output: Tensor, gamma: int, activation: Callable[[Tensor], Tensor], axis: int = -1
) -> Tensor:
    """Sum ``activation(output)`` over ``gamma`` consecutive nodes and hand the sum to each of them.

    ``axis`` holds the nodes and counts from the end. The result has the memory format of ``output``.
    """
    return pool(activation(output), gamma, axis)


@register(
    paper="Synaptic diversity (Nat. Commun. 16, 2025)",
    neutral=({"gamma": 1},),
    examples=({"gamma": 2}, {"gamma": 4, "activation": "tanh"}),
)
@dataclass(frozen=True, kw_only=True)
class MultiSynapse(Mechanism):
    r"""Let every node receive each signal through several synapses of its own.

    .. math:: y_g = \sum_{k \in g} \varphi(a_k) \quad \text{for each of the } \Gamma \text{ members of } g

    ``gamma`` consecutive nodes of a layer form a group ``g``: the members' pre-activations ``a`` go
    through the synaptic activation ``phi``, are summed, and the sum is handed to every member. The layer
    below has ``1/gamma`` as many distinct signals, and each reaches the next layer through ``gamma``
    weights. Shapes do not change. The read-out is left as it is.

    Args:
        gamma: synapses per pair of nodes; must divide the number of nodes of a layer.
        activation: the synaptic activation: ``"identity"``, ``"relu"``, ``"tanh"``, ``"sigmoid"``,
            ``"gelu"``, ``"silu"``, or a callable ``Tensor -> Tensor`` of your own (which cannot be
            written to JSON).
        where: see :class:`bouton.Mechanism`.

    Raises:
        ValueError: ``gamma`` below 1, or an unknown activation.

    Note:
        When not to use it: on a trained model that is to keep its function, because the outputs change
        at once; or in a narrow layer, because the layer then carries ``1/gamma`` as many signals. It
        also multiplies the pre-activations' variance by about ``gamma``, which acts like a larger
        initialisation, and in float16 reaches the end of the range (65504) that much earlier.

        With the identity, all members of a group get the same gradient, so that under SGD their sum is one
        synapse at ``gamma`` times the learning rate. Large dense layers and convolutions then sum the
        members' weights in training, and make ``1/gamma`` of the products; outputs are the same up to
        rounding. They do so in float32 and float64, where no other mechanism needs the nodes apart, and no
        hook of others comes between.

    References:
        Hofmann et al., Nature Communications 16, 5112 (2025), doi 10.1038/s41467-025-60078-9.

    Example:
        >>> import torch
        >>> pool_nodes(torch.tensor([1.0, 2.0, 3.0, 4.0]), gamma=2, activation=lambda a: a)
        tensor([3., 3., 7., 7.])
    """

    gamma: int = 2
    activation: str | Callable[[Tensor], Tensor] = "identity"

    site = "wiring"

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.gamma) is not int or self.gamma < 1:
            raise ValueError(f"MultiSynapse(gamma={self.gamma!r}): use a whole number from 1")
        if not callable(self.activation) and self.activation not in ACTIVATIONS:
            raise ValueError(
                f"MultiSynapse(activation={self.activation!r}): use a callable or one of "
                f"{', '.join(ACTIVATIONS)}"
            )

    def serves(self, group: SynapseGroup) -> str | None:
        if group.readout:
            return "the read-out keeps its nodes apart"
        if group.node_count % self.gamma:
            return f"gamma={self.gamma} does not divide its {group.node_count} nodes"
        return None

    @property
    def sums(self) -> int:  # type: ignore[override]
        # a subclass may have another rule
        plain = self.activation == "identity" and type(self).rule is MultiSynapse.rule
        return self.gamma if plain else 1

    def rule(self, synapses: Synapses, output: Tensor) -> Tensor:
        phi = self.activation if callable(self.activation) else ACTIVATIONS[self.activation]
        return pool_nodes(output, self.gamma, phi, synapses.axis)
