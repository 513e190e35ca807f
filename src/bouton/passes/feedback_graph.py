"""A backward wiring rule in a graph of torch.compile, whose backward pass changes nothing but tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bouton.claim import Claim
from bouton.passage import Passage
from bouton.stored import read_weight


class SendInGraph(torch.autograd.Function):
    """Hands the output on; backward, the input gets what the rule sends."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, source: Tensor, claim: Claim, layer: nn.Module, name: str, readout: bool
    ) -> Tensor:
        """The output itself; ``name`` is that of the layer's weight."""
        ctx.rule = claim, layer, name, readout
        ctx.save_for_backward(source)  # for its shape alone, which may be dynamic
        return output.clone()  # compiled away; a view could not be changed in place

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        """The error for the output, and that for the input."""
        claim, layer, name, readout = ctx.rule
        (source,) = ctx.saved_tensors
        passage = Passage(error, [error] if readout else [], source.shape, layer, claim.layout)
        return error, claim.send(read_weight(layer, name), passage), None, None, None, None
