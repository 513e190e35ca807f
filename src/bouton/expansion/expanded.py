"""The expanded layer: several synapses lead from each input to each node, each a weight of its own."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, cast

from torch import Tensor, nn

from bouton.layer_types import Layout
from bouton.mechanisms.multi_synapse import ACTIVATIONS
from bouton.synapse import find_groups

Activation = str | Callable[[Tensor], Tensor]


def is_identity(activation: Activation) -> bool:
    """Whether synapses with this activation add up to a single one."""
    return activation in ("identity", ACTIVATIONS["identity"])


def sum_members(nodes: Tensor, gamma: int) -> Tensor:
    """Sum over each ``gamma`` consecutive entries of the first axis."""
    summed: Tensor = nodes.unflatten(0, (-1, gamma)).sum(1)
    return summed


class Expanded(nn.Module):
    r"""A layer in which ``gamma`` synapses lead from each input to each node.

    .. math:: y_o = \sum_{k=1}^{\Gamma} \varphi\Big(\sum_i w^k_{oi} x_i + b^k_o\Big)

    ``synapses`` is an ordinary layer with ``gamma`` times the nodes; the ``gamma`` members of a node are
    consecutive. So each synapse has a learning rate and a turnover of its own once mechanisms are attached.
    Made by :func:`bouton.expand`.
    """

    synapses: nn.Module

    def __init__(self, synapses: nn.Module, gamma: int, activation: Activation = "identity") -> None:
        super().__init__()
        self.synapses, self.gamma, self.activation = synapses, gamma, activation
        self.layout: Layout = find_groups(synapses)[0].layout
        self.train(synapses.training)

    @property
    def weight(self) -> Tensor:
        """The sum over the synapses, for code that reads a layer's weight without calling the layer."""
        if not is_identity(self.activation):
            return cast(Tensor, self.synapses.weight).as_subclass(_NoWeight)
        nodes = self.layout.nodes(cast(Tensor, self.synapses.weight))
        return self.layout.nodes(sum_members(nodes, self.gamma))

    @property
    def bias(self) -> Tensor | None:
        """The sum over the synapses' biases, see :attr:`weight`."""
        bias = cast(Tensor | None, self.synapses.bias)
        return None if bias is None else sum_members(bias, self.gamma)

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """As the layer's own, summed over the members of each node."""
        phi = self.activation if callable(self.activation) else ACTIVATIONS[self.activation]
        output = phi(self.synapses(*inputs, **options))
        if self.gamma == 1:
            return output  # the only member would be a view, which in-place activations cannot change
        members: Tensor = output.unflatten(self.layout.output_axis, (-1, self.gamma))
        # not sum(): it is slow along a short axis, and loses channels_last
        return reduce(operator.add, members.unbind(self.layout.output_axis))

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"gamma={self.gamma}, activation={self.activation!r}"


class _NoWeight(Tensor):
    """Stands where a weight would be, and sees to it that torch's fused code paths keep away."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        raise ValueError(
            "an expanded layer with a synaptic activation has no single weight to read; call the layer, or "
            "read the weights of its synapses"
        )
