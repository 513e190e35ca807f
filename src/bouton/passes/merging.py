"""Fewer products: where a wiring rule sums a layer's nodes, the layer sums their weights before.

    sum_k (W_k x + b_k) = (sum_k W_k) x + sum_k b_k

Of a group of nodes whose sum is handed to each of them the layer then makes one, forward and backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from bouton.claim import Claim
from bouton.compiled import Unscripted, forward_only
from bouton.passes.modulation import transforming
from bouton.passes.pooling import repeat, sum_members
from bouton.switch import Switch
from bouton.synapse import SynapseGroup
from bouton.tensors.precision import is_precise

KINDS = (nn.Linear, NonDynamicallyQuantizableLinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NAMES = ("weight", "bias")
# What is done for fewer inputs, or in fewer products, takes less time than summing weights.
FEW_USES, FEW_PRODUCTS = 32, 2**21


@dataclass
class Merge(Unscripted):
    """Forward pre-hook: for one forward pass, the layer finds the sums of its weights in their place.

    They hide its parameters and do not replace them: who asks for those, as an optimizer or a state dict
    does, finds what is there always. A layer's own forward is what hides nothing.
    """

    gamma: int
    axis: int
    switch: Switch

    def __call__(self, layer: nn.Module, inputs: tuple[object, ...]) -> None:
        """Run by torch before the layer's forward."""
        if torch.compiler.is_compiling():
            return
        show_parameters(layer)  # where a forward pass was broken off
        if not self.switch.on or not self._serves(layer, inputs):
            return
        for name in _NAMES:
            held = layer._parameters[name]
            if held is not None:
                layer.__dict__[name] = sum_members(held, self.gamma, -held.ndim)

    def join(self, layer: nn.Module, output: Tensor | None) -> Tensor | None:
        """The layer's output, of all nodes, if the layer has made sums; None otherwise, or if it failed."""
        show_parameters(layer)
        weight = layer._parameters.get("weight")
        if output is None or weight is None or output.shape[self.axis] == len(weight):
            return None
        return repeat(output, self.gamma, self.axis)

    def _serves(self, layer: nn.Module, inputs: tuple[object, ...]) -> bool:
        weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
        if not torch.is_grad_enabled():  # several threads may use one layer
            return False
        # of others, and may take sums for weights
        if next(reversed(layer._forward_pre_hooks.values())) is not self or "forward" in layer.__dict__:
            return False
        if type(weight) is not nn.Parameter or not is_precise(weight) or transforming() or forward_only():
            return False
        if bias is not None and type(bias) is not nn.Parameter:
            return False
        if len(weight) // getattr(layer, "groups", 1) % self.gamma:
            return False
        source = inputs[0] if inputs else None
        if not isinstance(source, Tensor) or source.is_nested:
            return False
        uses = source.numel() // (weight.shape[1] * getattr(layer, "groups", 1) or 1)
        return uses >= FEW_USES and uses * weight.numel() >= FEW_PRODUCTS


def merge_for(wirings: Sequence[Claim], group: SynapseGroup, switch: Switch) -> Merge | None:
    """What merges the nodes of a group's layers, if that is all that their wiring rules ask for."""
    if len(wirings) != 1 or not all(type(layer) in KINDS for layer in group.layers):
        return None
    gamma = wirings[0].mechanism.sums
    return Merge(gamma, group.layout.output_axis, switch) if gamma > 1 else None


def show_parameters(layer: nn.Module) -> None:
    """Undo what a :class:`Merge` has hidden."""
    for name in _NAMES:
        # in both places it is never otherwise
        if layer._parameters.get(name) is not None:
            layer.__dict__.pop(name, None)
