"""Gates whose layers share errors within the backward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bouton.claim import Claim
from bouton.compiled import keep_out_of_graphs
from bouton.passes.feedback import Gate

_IN_NO_GRAPH = (
    "bouton: kind='dfa' and 'ifa' hand the error of one layer to others within the backward pass, which no "
    "graph of torch.compile can hold; compile without fullgraph=True, or use kind='fa'"
)


class DirectGate(Gate):
    """A gate that ``torch.compile`` leaves as it is."""

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """See :class:`bouton.passes.feedback.Gate`."""
        return super().__call__(layer, inputs)

    def join(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """See :class:`bouton.passes.feedback.Gate`."""
        return super().join(layer, inputs, output)


def gate_for(claim: Claim, *rest: Any) -> Gate:
    """The gate of a backward wiring claim; ``rest`` are the further arguments of the gate."""
    if not (claim.mechanism.direct or claim.mechanism.relays):
        return Gate(claim, *rest)
    keep_out_of_graphs(DirectGate, "__call__", "join", reason=_IN_NO_GRAPH)
    return DirectGate(claim, *rest)
