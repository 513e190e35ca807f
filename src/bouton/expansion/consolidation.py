"""Consolidation: a copy of a model in which several synapses are folded into one wherever that is exact."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from bouton.claim import Claim
from bouton.expansion.expanded import Expanded, is_identity, sum_members
from bouton.expansion.readers import Reader, Readers, UnmergeableError
from bouton.expansion.surgery import copied, replaced, resize, unfit, weight_owners, wide
from bouton.layer_types import Layout
from bouton.mechanisms.multi_synapse import MultiSynapse
from bouton.passes.layer import LayerHook, clear_layer
from bouton.synapse import find_groups

_NONLINEAR = "its synaptic activation is {!r}, and only the identity's synapses add up"
_Owners = Mapping[nn.Parameter, list[str]]
_Layouts = Mapping[nn.Module, Layout]


def consolidate(model: nn.Module) -> nn.Module:
    r"""Copy a model into a plain one for inference: several synapses become one wherever that is exact.

    - An expanded layer (:func:`bouton.expand`) with the identity becomes the plain layer that it was, with
      the sum of the synapses as weight: :math:`w = \sum_k w^k`.
    - A grouped layer (:class:`bouton.MultiSynapse`) with the identity takes the sum over the members of
      each group into its weights. If nothing but pointwise operations, channel-wise pooling and flattening
      lies between it and each ``Linear`` or convolution that reads it, one node stands for each group: the
      layer has ``1/gamma`` of its nodes, and its readers sum the weights of ``gamma`` equal inputs.
      Otherwise all nodes stay.
    - All other mechanisms are taken off, as they change training alone.

    In evaluation mode and on inputs with a batch axis, the copy computes what the model computes, up to
    rounding. A model without any of these is copied, so that this may stand at the end of any training.

    Args:
        model: any module; it is left as it is. ``torch.fx`` follows its ``forward``, and takes required
            inputs for tensors; a forward that it cannot trace is taken to use a layer's weights only by
            calling the layer.

    Returns:
        The copy. It has no more parameters than the model, and :func:`bouton.attach` takes it again if
        nothing is left.

    Raises:
        ValueError: ``model`` is no module.

    Warns:
        UserWarning: a layer is left as it is, and computes what it did, because another activation, a
            shared weight, a hook and the like make folding inexact; or it is folded, but keeps all of its
            nodes, because of what reads them. One warning for each layer, with the reason.

    Note:
        When not to use it: on a model that will be trained further, as siblings that became one stay one.

    References:
        Hofmann et al., Nature Communications 16, 5112 (2025), doi 10.1038/s41467-025-60078-9.

    Example:
        >>> import bouton, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> handle = bouton.attach(model, None, [bouton.MultiSynapse(gamma=2)])
        >>> bouton.consolidate(model)
        Sequential(
          (0): Linear(in_features=8, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=2, bias=True)
        )
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    model = copied(model)
    owners = weight_owners(model)
    messages: list[str] = []
    for path, module in reversed([*model.named_modules()]):  # an expanded layer may lie within another
        if isinstance(module, Expanded):
            if reason := _why_apart(module, owners):
                messages.append(f"leaves {path or 'the model'} as it is: {reason}")
            else:
                model = replaced(model, module, _folded(module))
    messages += _fold_groups(model, owners)
    for message in messages:
        warnings.warn(f"consolidate {message}", stacklevel=2)
    return model


def _why_apart(module: Expanded, owners: _Owners) -> str | None:
    """Why the synapses of an expanded layer do not add up to one, None if they do."""
    if not is_identity(module.activation):
        return _NONLINEAR.format(module.activation)
    if module._forward_hooks or module._forward_pre_hooks:
        return "it bears a hook"
    return _why_grouped(module.synapses, owners)


def _folded(module: Expanded) -> nn.Module:
    layer = module.synapses
    if wiring := _wiring(layer):
        _pool(layer, module.layout, _gamma(wiring), merge=False)
    clear_layer(layer)
    _pool(layer, module.layout, module.gamma, merge=True)
    return layer


def _wiring(layer: nn.Module) -> Claim | None:
    """What transforms a layer's output."""
    hooks = [hook for hook in layer._forward_hooks.values() if isinstance(hook, LayerHook)]
    return next((claim for hook in hooks for claim in hook.wirings), None)


def _gamma(wiring: Claim) -> int:
    return cast(MultiSynapse, wiring.mechanism).gamma


def _why_grouped(layer: nn.Module, owners: _Owners) -> str | None:
    """Why a layer's weights cannot take in the sum over its groups, None if they can."""
    if reason := unfit(layer, owners):
        return reason
    wiring = _wiring(layer)
    mechanism = wiring.mechanism if wiring else MultiSynapse(gamma=1)
    if type(mechanism) is not MultiSynapse:
        return f"{type(mechanism).__name__} transforms its output"
    if not is_identity(mechanism.activation):
        return _NONLINEAR.format(mechanism.activation)
    if not isinstance(layer, nn.Linear):
        convolution = cast(nn.Conv1d, layer)
        if convolution.out_channels // convolution.groups % mechanism.gamma:
            return f"its groups of {mechanism.gamma} nodes do not fit into its channel groups"
    return None


def _fold_groups(model: nn.Module, owners: _Owners) -> list[str]:
    """Fold all grouped layers, take everything else off, and say what was not folded in full."""
    messages: list[str] = []
    grouped: dict[str, int] = {}
    readers = Readers(model) if any(map(_wiring, model.modules())) else None
    for path, layer in model.named_modules():
        if (wiring := _wiring(layer)) and readers:
            if reason := _why_grouped(layer, owners) or readers.why_bound(layer):
                messages.append(f"leaves {path or 'the model'} as it is: {reason}")
                continue
            grouped[path] = _gamma(wiring)
        clear_layer(layer)
    layouts = {layer: group.layout for group in find_groups(model) for layer in group.layers}
    for path, gamma in grouped.items():
        layer = model.get_submodule(path)
        if readers and gamma > 1 and (reason := _fold_group(layer, gamma, readers, layouts, owners)):
            messages.append(f"folds {path or 'the model'}, but keeps all of its nodes: {reason}")
    return messages


def _fold_group(
    layer: nn.Module, gamma: int, readers: Readers, layouts: _Layouts, owners: _Owners
) -> str | None:
    """Fold one layer, and say why all of its nodes stay, if they do."""
    layout = layouts[layer]
    count = layout.nodes(cast(Tensor, layer.weight)).shape[0]
    try:
        own = readers.of(layer, layout.output_axis)
        merged = [_merged_inputs(reader, layouts, count, gamma, owners) for reader in own]
    except UnmergeableError as reason:
        _pool(layer, layout, gamma, merge=False)
        return str(reason)
    _pool(layer, layout, gamma, merge=True)
    for reader, nodes in zip(own, merged, strict=True):
        resize(reader.layer, layouts[reader.layer], nodes, None)
    return None


def _pool(layer: nn.Module, layout: Layout, gamma: int, merge: bool) -> None:
    """Sum a layer's weights over each group, which keeps one node, or ``gamma`` equal ones."""
    bias = cast(Tensor | None, layer.bias)
    weights, biases = (
        None
        if values is None
        else sum_members(wide(values), gamma).repeat_interleave(1 if merge else gamma, 0)
        for values in (layout.nodes(cast(Tensor, layer.weight)), bias)
    )
    resize(layer, layout, cast(Tensor, weights), biases)


def _merged_inputs(reader: Reader, layouts: _Layouts, count: int, gamma: int, owners: _Owners) -> Tensor:
    """The weights of a reader that gets each group's signal once."""
    if reason := unfit(reader.layer, owners):
        raise UnmergeableError(f"it goes to a layer which cannot change: {reason}")
    nodes = layouts[reader.layer].nodes(wide(cast(Tensor, reader.layer.weight)))
    fan = nodes.shape[1]
    if reader.flat and fan % count:
        raise UnmergeableError(f"it is flattened, and {fan} inputs are no multiple of {count} nodes")
    positions = fan // count if reader.flat and reader.channels_first else 1  # side by side, for each node
    if fan % (gamma * positions):
        raise UnmergeableError(f"the {fan} inputs of each channel group that reads it hold no whole groups")
    merged: Tensor = nodes.unflatten(1, (-1, gamma, positions)).sum(2).flatten(1, 2)
    return merged
