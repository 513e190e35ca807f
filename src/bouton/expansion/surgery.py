"""Surgery on a model: other weights for a layer, another module in its place, and when that is unsafe."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from bouton.layer_types import Layout
from bouton.passes.feedback import Gate
from bouton.passes.layer import LayerHook
from bouton.passes.merging import Merge

KINDS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model with pruned weights.

    Those are computed anew in each forward pass, and torch refuses to copy a tensor with a history.
    """
    tensors = [value for module in model.modules() for value in vars(module).values()]
    computed = [value for value in tensors if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


def wide(values: Tensor) -> Tensor:
    """The values in double precision, on the CPU, so that sums and draws are the same on all devices."""
    return values.detach().cpu().to(torch.promote_types(values.dtype, torch.float64))


def resize(layer: nn.Module, layout: Layout, nodes: Tensor, bias: Tensor | None) -> None:
    """Give a layer other weights ``[node, fan-in...]`` and biases, whose sizes it takes over."""
    for name, values in (("weight", layout.nodes(nodes)), ("bias", bias)):
        old = layer._parameters[name]
        if old is not None and values is not None:
            new = values.to(old.device, old.dtype).contiguous()
            setattr(layer, name, nn.Parameter(new, requires_grad=old.requires_grad))
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = nodes.shape
    else:
        convolution = cast(nn.Conv1d, layer)
        convolution.out_channels = nodes.shape[0]
        convolution.in_channels = nodes.shape[1] * convolution.groups


def replaced(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """The model with one module put in another's place, at all of its paths."""
    if model is old:
        return new
    for parent in [module for module in model.modules() if module is not new]:
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new  # keeps the order of registration
    return model


def weight_owners(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Where each parameter is found, with a shared module counted once."""
    owners: dict[nn.Parameter, list[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, []).append(f"{path}.{name}".removeprefix("."))
    return owners


def unfit(layer: nn.Module, owners: Mapping[nn.Parameter, list[str]]) -> str | None:
    """Why a layer's weights cannot be set to others of another size, None if they can.

    ``owners`` may be older than the weights: those that were set since are shared by nobody.
    """
    if not isinstance(layer, KINDS):
        return f"it is of type {type(layer).__name__}, and only Linear and convolutions are known"
    if layer._parameters.get("weight") is None or "bias" not in layer._parameters:
        return "its weight or bias is pruned or computed from other parameters"
    if type(layer) not in (*KINDS, NonDynamicallyQuantizableLinear):
        return f"its type {type(layer).__name__} may do more than torch's own layers"
    hooks = [*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()]
    hooks += [*layer._backward_hooks.values(), *layer._backward_pre_hooks.values()]
    if any(not isinstance(hook, Gate | LayerHook | Merge) for hook in hooks):
        return "it bears a hook, which would see other values"
    for name, parameter in layer._parameters.items():
        if parameter is not None and len(places := owners.get(parameter, [])) > 1:
            return f"its {name} is shared: {', '.join(places)}"
    return None
