"""Multi-synaptic connectivity: several synapses lead from one node to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from bouton.mechanism import Mechanism, register
from bouton.native.outputs import pool
from bouton.passes.modulation import transforming
from bouton.sites import Synapses
from bouton.synapse import SynapseGroup
from bouton.tensors.precision import wide

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
    output = activation(output)
    if torch.compiler.is_compiling() or torch._C._get_tracing_state():  # graphs of torch's operations alone
        members = output.unflatten(axis, (-1, gamma))
        pooled: Tensor = members.sum(axis, keepdim=True).expand_as(members).flatten(axis - 1, axis)
        return pooled
    return _pool(output, gamma, axis)


def _pool(output: Tensor, gamma: int, axis: int) -> Tensor:
    # torch.func asks for another form of function, whose call takes three times as long
    kind = _PoolUnderTransforms if transforming() else _Pool
    return cast(Tensor, kind.apply(output, gamma, axis))  # type: ignore[no-untyped-call]


def _pooled(output: Tensor, gamma: int, axis: int) -> Tensor:
    native = pool(output, gamma, axis)
    if native is not None:
        return native
    pooled = torch.empty_like(output)
    if gamma == 1:
        return pooled.copy_(output)
    if gamma > 2 and output.dtype != wide(output.dtype):  # 16 bits would round every partial sum
        return _pooled(output.to(wide(output.dtype)), gamma, axis).to(output.dtype)
    # [..., node / gamma, gamma, ...], and of that one member after another
    members, places = (x.unflatten(axis, (-1, gamma)).unbind(axis) for x in (output, pooled))
    total = torch.add(members[0], members[1], out=places[0])
    for member in members[2:]:
        total.add_(member)
    for place in places[1:]:
        place.copy_(total)
    return pooled


class _Pool(torch.autograd.Function):
    """The sum over each group of nodes, at each of its members; its own transpose.

    Autograd would sum along a short axis, which is slow, and lose the memory format.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, gamma: int, axis: int) -> Tensor:
        ctx.gamma, ctx.axis = gamma, axis
        return _pooled(output, gamma, axis)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, None, None]:
        again = torch.is_grad_enabled() or transforming()
        return (_pool if again else _pooled)(error, ctx.gamma, ctx.axis), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _pool(tangent, ctx.gamma, ctx.axis)


class _PoolUnderTransforms(_Pool):
    @staticmethod
    def forward(output: Tensor, gamma: int, axis: int) -> Tensor:  # type: ignore[override]
        return _pooled(output, gamma, axis)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
        _, ctx.gamma, ctx.axis = inputs

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int, None, None], output: Tensor, gamma: int, axis: int
    ) -> tuple[Tensor, int]:
        return _pool(output.movedim(in_dims[0], 0), gamma, axis), 0  # the axis counts from the end


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

    def rule(self, synapses: Synapses, output: Tensor) -> Tensor:
        phi = self.activation if callable(self.activation) else ACTIVATIONS[self.activation]
        return pool_nodes(output, self.gamma, phi, synapses.axis)
