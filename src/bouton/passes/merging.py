"""Fewer products: where a wiring rule sums a layer's nodes, the layer sums their weights before.

    sum_k (W_k x + b_k) = (sum_k W_k) x + sum_k b_k

Of a group of nodes whose sum is handed to each of them the layer then makes one, forward and backward.
They share an error ``e``. Where error rules give each node a factor ``f_k`` of it, the gradient of its
weights is ``f_k e x``, and the input's error ``(sum_k f_k W_k) e``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.modules.module import _has_any_global_hook

from bouton.claim import Claim
from bouton.compiled import Unscripted, forward_only
from bouton.layer_types import Layout
from bouton.passage import Passage
from bouton.passes.modulation import transforming
from bouton.passes.pooling import repeat, repeat_nodes, sum_members, sum_nodes
from bouton.switch import Switch
from bouton.synapse import SynapseGroup
from bouton.tensors.precision import is_precise

KINDS = (nn.Linear, NonDynamicallyQuantizableLinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# What is done for fewer inputs, or in fewer products, takes less time than summing weights.
FEW_USES, FEW_PRODUCTS = 32, 2**21
_NAMES, _CUT = ("weight", "bias"), "_bouton_cut"


@dataclass
class Merge(Unscripted):
    """Forward pre-hook: for one forward pass, the layer finds the sums of its weights in their place.

    They hide its parameters and do not replace them: who asks for those, as an optimizer or a state dict
    does, finds what is there always. Where a pass is broken off, ``layer.weight`` is the sums until the
    next one; torch could call a hook there, but would then compile each layer apart.
    """

    gamma: int
    layout: Layout
    errors: Sequence[Claim]
    switch: Switch

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Run by torch before the layer's forward."""
        if torch.compiler.is_dynamo_compiling():
            return None
        if "weight" in layer.__dict__:  # of a forward pass that was broken off
            show_parameters(layer)
        if not self.switch.on or not self._serves(layer, inputs):
            return None
        weight, bias, source = layer._parameters["weight"], layer._parameters.get("bias"), inputs[0]
        assert weight is not None
        factors = _Factors.of(self.errors, weight.detach(), self.switch) if self.errors else None
        sums = sum_nodes((weight,) if bias is None else (weight, bias), self.gamma, factors)
        layer.__dict__.update(zip(_NAMES, sums, strict=False))  # there may be no bias
        if factors is None or not source.requires_grad:
            return None
        layer.__dict__[_CUT] = source, factors
        return (source.detach(), *inputs[1:])

    def join(self, layer: nn.Module, output: Tensor) -> Tensor | None:
        """The layer's output, of all nodes, if the layer has made sums; None otherwise."""
        if torch.compiler.is_dynamo_compiling() or "weight" not in layer.__dict__:
            return None
        cut, axis = layer.__dict__.get(_CUT), self.layout.output_axis
        if not show_parameters(layer):
            return None
        if cut is None:
            return repeat_nodes(output, self.gamma, axis)
        weight = layer._parameters["weight"]
        sent: Tensor = _Send.apply(output, *cut, weight, layer, self)  # type: ignore[no-untyped-call]
        return sent

    def _serves(self, layer: nn.Module, inputs: tuple[Any, ...]) -> bool:
        weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
        if not torch.is_grad_enabled():  # several threads may use one layer
            return False
        if transforming() or forward_only() or forward_ad._current_level >= 0:
            return False
        # of others, and may take sums for weights
        if next(reversed(layer._forward_pre_hooks.values())) is not self or "forward" in layer.__dict__:
            return False
        if self.errors and self._is_watched(layer):
            return False
        if type(weight) is not nn.Parameter or not is_precise(weight):
            return False
        if bias is not None and type(bias) is not nn.Parameter:
            return False
        groups = layer.__dict__.get("groups", 1)  # not asked of the module, which looks everywhere for it
        if weight.shape[0] // groups % self.gamma:
            return False
        source = inputs[0] if inputs else None
        if not isinstance(source, Tensor) or source.is_nested:
            return False
        uses = source.numel() // (weight.shape[1] * groups or 1)
        return uses >= FEW_USES and uses * weight.numel() >= FEW_PRODUCTS

    def _is_watched(self, layer: nn.Module) -> bool:
        """Whether others would find the layer's input without its past."""
        hooks = layer._backward_hooks or layer._backward_pre_hooks or len(layer._forward_hooks) > 1
        return bool(hooks) or _has_any_global_hook()


def merge_for(
    wirings: Sequence[Claim], errors: Sequence[Claim], group: SynapseGroup, switch: Switch
) -> Merge | None:
    """What merges the nodes of a group's layers, if that is all that their wiring rules ask for."""
    if len(wirings) != 1 or not all(type(layer) in KINDS for layer in group.layers):
        return None
    gamma = wirings[0].mechanism.sums
    return Merge(gamma, group.layout, errors, switch) if gamma > 1 else None


def show_parameters(layer: nn.Module) -> bool:
    """Undo what a :class:`Merge` has hidden; whether there was anything."""
    layer.__dict__.pop(_CUT, None)
    found = False
    for name in _NAMES:  # what is in both places
        if name in layer.__dict__ and layer._parameters.get(name) is not None:
            del layer.__dict__[name]
            found = True
    return found


@dataclass
class _Factors:
    """Those of the error at each node; called in the backward pass, as a hook on the error would be."""

    made: Tensor
    switch: Switch

    @staticmethod
    def of(errors: Sequence[Claim], weight: Tensor, switch: Switch) -> _Factors:
        first, *others = [claim.error_factor(weight).flatten() for claim in errors]
        for other in others:
            first = first * other
        return _Factors(first.to(weight.dtype), switch)

    def __call__(self) -> Tensor | None:
        return self.made if self.switch.on else None


class _Send(torch.autograd.Function):
    """Each sum at all nodes of its group; backward, the input gets the error that those would send."""

    @staticmethod
    def forward(
        ctx: Any,
        sums: Tensor,
        source: Tensor,
        factors: _Factors,
        weight: Tensor,
        layer: nn.Module,
        merge: Merge,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.call = source.shape, factors, layer, merge
        return repeat(sums, merge.gamma, merge.layout.output_axis)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), (shape, factors, layer, merge) = ctx.saved_tensors, ctx.call
        error = sum_members(error, merge.gamma, merge.layout.output_axis)
        merged = sum_members(weight, merge.gamma, -weight.ndim, factors(), factors)
        sent = Passage(error, [], shape, layer, merge.layout).through(merged)
        return error, sent, None, None, None, None
