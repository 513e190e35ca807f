"""How a layer stores a weight: as it is, pruned, or computed from other parameters at each access."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

# What torch.nn.utils.prune and spectral_norm, and the older weight_norm, call the parameter of the
# weight's own shape; the weight itself is a plain attribute that a hook sets before each forward pass.
_SUFFIXES = ("_orig", "_v")


def stored_name(layer: nn.Module, parameter: str) -> str | None:
    """The parameter of the weight's shape that an optimizer steps, by its name within ``layer``.

    That is ``parameter`` itself where the layer stores it as it is; None where there is no such.
    """
    if layer._parameters.get(parameter) is not None:
        return parameter
    if is_parametrized(layer, parameter):
        shape = read_weight(layer, parameter).shape
        originals = _parametrizations(layer, parameter)._parameters
        # The last one: a weight_norm with a fan-in of 1 has a magnitude of the direction's shape before it.
        alike = [
            name for name, original in originals.items() if original is not None and original.shape == shape
        ]
        return f"parametrizations.{parameter}.{alike[-1]}" if alike else None
    if not isinstance(layer.__dict__.get(parameter, layer._buffers.get(parameter)), Tensor):
        return None
    return next(
        (parameter + s for s in _SUFFIXES if layer._parameters.get(parameter + s) is not None), None
    )


def stored_parameter(layer: nn.Module, name: str | None) -> nn.Parameter | None:
    """The parameter at a name that :func:`stored_name` gave, None if there is none or it is gone."""
    if name is None:
        return None
    *path, last = name.split(".")
    module: nn.Module | None = layer
    for step in path:
        module = module._modules.get(step) if module is not None else None
    return module._parameters.get(last) if module is not None else None


def read_weight(layer: nn.Module, parameter: str) -> Tensor:
    """The weight as the layer's forward pass uses it, detached; reading leaves the layer as it is."""
    held = layer._parameters.get(parameter)
    if held is not None:
        return held.detach()
    if not is_parametrized(layer, parameter):
        mask = prune_mask(layer, parameter)
        if mask is not None:
            return layer._parameters[parameter + "_orig"].detach() * mask  # type: ignore[union-attr]
        weight: Tensor = getattr(layer, parameter)
        return weight.detach()
    # A spectral norm in training mode makes a step of its power iteration at each access.
    steps = [module for module in _parametrizations(layer, parameter).modules() if module.training]
    for module in steps:
        module.training = False
    try:
        with torch.no_grad():
            # not the attribute: parametrize.cached() would keep what is read here, without its graph
            return cast(Tensor, _parametrizations(layer, parameter)()).detach()
    finally:
        for module in steps:
            module.training = True


def prune_mask(layer: nn.Module, parameter: str) -> Tensor | None:
    """1 where a pruned weight is kept and 0 where it is gone; None for a weight that is not pruned."""
    return layer._buffers.get(parameter + "_mask")


def _parametrizations(layer: nn.Module, parameter: str) -> nn.Module:
    return cast(nn.ModuleDict, layer.parametrizations)[parameter]
