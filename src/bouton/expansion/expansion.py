"""Expansion: a copy of a model in which every weight really becomes several synapses."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from bouton.expansion.expanded import Activation, Expanded, is_identity
from bouton.expansion.surgery import KINDS, copied, replaced, resize, unfit, weight_owners, wide
from bouton.mechanism import Mechanism, Where
from bouton.mechanisms.multi_synapse import ACTIVATIONS
from bouton.passes.layer import MARK
from bouton.sites import RandomStream
from bouton.synapse import SynapseGroup, find_groups
from bouton.where import is_wanted, unmatched


def expand(
    model: nn.Module,
    gamma: int = 2,
    *,
    activation: Activation = "identity",
    where: Where = None,
    readout: str | Sequence[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    r"""Copy a model with every weight turned into ``gamma`` weights: multi-synaptic connectivity in full.

    .. math:: y_o = \sum_{k=1}^{\Gamma} \varphi\Big(\sum_i w^k_{oi} x_i + b^k_o\Big)

    Each chosen ``Linear``, ``Conv1d/2d/3d`` or ``ConvTranspose1d/2d/3d`` becomes an ``Expanded`` module at
    the same path, which holds an ordinary layer ``synapses`` with weights ``[gamma * node, fan-in...]``.
    Shapes of inputs and outputs do not change.

    The synapses start as ``gamma`` independent normal draws would be that happen to add up to the weight
    (for biases alike):

    .. math:: w^k = w / \Gamma + \tfrac{\sigma}{\sqrt\Gamma} (z^k - \bar z), \quad z \sim N(0, 1)

    with ``sigma`` the root mean square of the layer's weights. So with the identity the copy computes what
    the model computed, up to rounding. With another activation only the sum of each node's pre-activations
    is that of the model, and its function is another one.

    Args:
        model: any module; it is left as it is.
        gamma: synapses per weight.
        activation: the synaptic activation: ``"identity"``, ``"relu"``, ``"tanh"``, ``"sigmoid"``,
            ``"gelu"``, ``"silu"``, or a callable ``Tensor -> Tensor`` that acts on each entry by itself.
        where: a glob or list of globs over module paths, or a predicate ``(path, module) -> bool``; None
            takes all layers of these types.
        readout: path (or paths) of the read-out, which is left as it is; by default the last layer with a
            weight in registration order, ``()`` for none.
        seed: seeds the draws; the global random state is never used.

    Returns:
        The expanded copy. Build its optimizer from its own parameters.

    Raises:
        ValueError: a wrong ``gamma``, ``activation``, ``where`` or ``readout``; no layer that can be
            expanded; a model that bears mechanisms.

    Warns:
        UserWarning: a chosen layer is left as it is, with the reason: a weight shared with another layer
            (which would be untied), a pruned or computed weight, a hook, a subclass.

    Note:
        When not to use it: with the identity and no other mechanism, because all synapses of a weight then
        get the same gradient, and under plain SGD an expanded layer trains as the plain one does at
        ``gamma`` times the learning rate. It also costs ``gamma`` times the arithmetic and memory until
        :func:`bouton.consolidate` folds it.

    References:
        Hofmann et al., Nature Communications 16, 5112 (2025), doi 10.1038/s41467-025-60078-9.

    Example:
        >>> import bouton, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> bouton.expand(model, gamma=3)
        Sequential(
          (0): Expanded(
            gamma=3, activation='identity'
            (synapses): Linear(in_features=8, out_features=12, bias=True)
          )
          (1): ReLU()
          (2): Linear(in_features=4, out_features=2, bias=True)
        )
    """
    _check(model, gamma, activation)
    model = copied(model)
    groups = find_groups(model, readout)
    chosen = _choose(groups, where)
    owners = weight_owners(model)
    left = {g.path: _reason(g, activation, owners) for g in chosen}
    taken = [g for g in chosen if left[g.path] is None]
    if not taken:
        reasons = "; ".join(f"{path or 'the model'}: {reason}" for path, reason in left.items())
        raise ValueError(f"expand found no Linear or convolution. {reasons or _has(groups)}")
    for group in chosen:
        if not group.readout and (reason := left[group.path]):
            warnings.warn(f"expand leaves {group.path} as it is: {reason}", stacklevel=2)
    for group in taken:
        layer = group.layers[0]
        _multiply(layer, group, gamma, RandomStream(seed, f"expand/{group.name}"))
        # a copy of the activation, which may be a module with parameters of its own
        model = replaced(model, layer, Expanded(layer, gamma, copy.deepcopy(activation)))
    return model


def _check(model: nn.Module, gamma: int, activation: Activation) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    if type(gamma) is not int or gamma < 1:
        raise ValueError(f"expand(gamma={gamma!r}): use a whole number from 1")
    if not callable(activation) and activation not in ACTIVATIONS:
        raise ValueError(
            f"expand(activation={activation!r}): use a callable or one of {', '.join(ACTIVATIONS)}"
        )
    if any(MARK in module.__dict__ for module in model.modules()):
        raise ValueError(
            "this model bears mechanisms; call detach() on its handle, or bouton.detach(model), then "
            "expand it, and attach them to the expanded model with an optimizer of its own"
        )


def _choose(groups: Sequence[SynapseGroup], where: Where) -> list[SynapseGroup]:
    if where is None:
        return [g for g in groups if isinstance(g.layers[0], KINDS)]
    where = Mechanism(where=where).where  # refuses what is no glob
    for pattern in unmatched(where, groups):
        raise ValueError(f"expand(where={pattern!r}) matches no layer with a weight; {_has(groups)}")
    return [g for g in groups if is_wanted(where, g)]


def _reason(
    group: SynapseGroup, activation: Activation, owners: Mapping[nn.Parameter, list[str]]
) -> str | None:
    if group.readout:
        return "the read-out, which readout= chooses"
    layer = group.layers[0]
    if isinstance(layer, NonDynamicallyQuantizableLinear) and not is_identity(activation):
        return "attention reads its weight without calling it, so that no activation can act"
    return unfit(layer, owners)


def _multiply(layer: nn.Module, group: SynapseGroup, gamma: int, stream: RandomStream) -> None:
    """Give a layer ``gamma`` times the nodes, whose weights and biases add up to the former ones."""
    bias = cast(Tensor | None, layer.bias)
    weights = _split(group.layout.nodes(wide(group.weight)), gamma, stream)
    resize(layer, group.layout, weights, None if bias is None else _split(wide(bias), gamma, stream))


def _split(whole: Tensor, gamma: int, stream: RandomStream) -> Tensor:
    """``[node, ...]`` into ``[gamma * node, ...]``."""
    draws = whole.new_empty(len(whole), gamma, *whole.shape[1:])
    draws.normal_(generator=stream.generator(draws.device))
    spread = whole.abs().square().mean().sqrt() / math.sqrt(gamma)
    members = whole.unsqueeze(1) / gamma + spread * (draws - draws.mean(1, keepdim=True))
    return members.flatten(0, 1)


def _has(groups: Sequence[SynapseGroup]) -> str:
    return (
        f"the model has: {', '.join(p or '(the model itself)' for g in groups for p in g.paths) or 'none'}"
    )
