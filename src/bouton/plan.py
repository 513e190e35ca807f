"""Plan and check: which mechanism takes which weight, decided before anything is touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bouton.layer_types import layer_types
from bouton.mechanism import Mechanism
from bouton.passes.layer import MARK
from bouton.sites import SITES
from bouton.synapse import SynapseGroup
from bouton.where import is_wanted, unmatched

FROZEN = "frozen (requires_grad is False)"

# What rules can draw, compare and average.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Two factors commute; two transformations of one output, or of one weight, do not.
_EXCLUSIVE = ("wiring", "structure")


@dataclass(frozen=True)
class Decision:
    """Whether one mechanism takes one synapse group; ``reason`` says why not, and is None if it does."""

    mechanism: Mechanism
    group: SynapseGroup
    reason: str | None = None


def make_plan(
    model: nn.Module,
    optimizer: Optimizer | None,
    groups: Sequence[SynapseGroup],
    mechanisms: Sequence[Mechanism],
) -> tuple[Decision, ...]:
    """Decide for every mechanism and every synapse group, and refuse what cannot be right.

    Raises:
        ValueError: see :func:`bouton.attach`.
    """
    if not isinstance(mechanisms, list | tuple) or not mechanisms:
        raise ValueError(f"mechanisms={mechanisms!r}: pass a list such as [bouton.Grapes()]")
    if not isinstance(optimizer, Optimizer | None):
        raise ValueError(f"optimizer must be a torch.optim.Optimizer, found {type(optimizer).__name__}")
    decisions: list[Decision] = []
    for mechanism in mechanisms:
        _check_mechanism(mechanism, model, groups)
        own = [Decision(mechanism, group, _reason(mechanism, group)) for group in groups]
        if all(decision.reason for decision in own):
            raise ValueError(_nothing_taken(mechanism, model, own))
        decisions += own
    taken = [decision for decision in decisions if decision.reason is None]
    _check_materialised(taken)
    _check_overlaps(taken)
    _check_optimizer(taken, optimizer)
    return tuple(decisions)


def _check_mechanism(mechanism: Mechanism, model: nn.Module, groups: Sequence[SynapseGroup]) -> None:
    if not isinstance(mechanism, Mechanism):
        raise ValueError(f"{mechanism!r} is no mechanism; pass an instance such as bouton.Grapes()")
    name = type(mechanism).__name__
    if mechanism.site not in SITES:
        raise ValueError(f"{name}.site is {mechanism.site!r}; use one of: {', '.join(SITES)}")
    if not callable(getattr(mechanism, "rule", None)):
        raise ValueError(f"{name} has no method rule(self, synapses); see bouton.SITES")
    scopes = ("update", "gradient") if mechanism.site == "rate" else ("update",)
    if mechanism.scope not in scopes:
        raise ValueError(
            f"{name}.scope is {mechanism.scope!r}; at the {mechanism.site} site, use {' or '.join(scopes)}"
        )
    if mechanism.direction not in ("forward", "backward"):
        raise ValueError(f"{name}.direction is {mechanism.direction!r}; use 'forward' or 'backward'")
    if type(mechanism.every) is not int or mechanism.every < 1:
        raise ValueError(f"{name}.every is {mechanism.every!r}; use a whole number of steps from 1")
    for pattern in unmatched(mechanism.where, groups):
        raise ValueError(
            f"{name}(where={pattern!r}) matches no layer with a weight; {_has(model, groups)}"
            + (". Leave out '.weight': where= names layers" if pattern.endswith(".weight") else "")
        )


def _check_materialised(taken: Sequence[Decision]) -> None:
    if bare := dict.fromkeys(d.group.name for d in taken if d.group.weight.is_meta):
        raise ValueError(
            f"without numbers yet, on the meta device: {', '.join(bare)}; materialise the model (to_empty, "
            "then initialise or load), build the optimizer, and call bouton.attach after that"
        )


def _check_overlaps(taken: Sequence[Decision]) -> None:
    for decision in taken:
        for layer, path in zip(decision.group.layers, decision.group.paths, strict=True):
            if marked := layer.__dict__.get(MARK):
                raise ValueError(
                    f"{path or 'this model'} is attached already ({marked.names}); call detach() on its "
                    "handle and give all mechanisms to one bouton.attach, or call bouton.detach(model) "
                    "first if this is a copy of an attached model"
                )
    direct = [decision for decision in taken if decision.mechanism.direct]
    for mechanism in (decision.mechanism for decision in direct):
        if not any(d.group.readout for d in direct if d.mechanism is mechanism):
            raise ValueError(
                f"{type(mechanism).__name__} needs the error of the read-out, and does not take it; let "
                "where= take it too, or name with readout= the layer whose output is the network's"
            )
    uses = Counter((decision.group, type(decision.mechanism).__name__) for decision in taken)
    for (group, name), count in uses.items():
        if count > 1:
            raise ValueError(
                f"{name} takes {group.name} {count} times; keep one, or give each its own layers "
                "with where="
            )
    owners: dict[tuple[SynapseGroup, str, str, bool], str] = {}
    for decision in taken:
        mechanism, group = decision.mechanism, decision.group
        if mechanism.site in _EXCLUSIVE:
            name = type(mechanism).__name__
            place = (group, mechanism.site, mechanism.direction, mechanism.last)
            other = owners.setdefault(place, name)
            if other != name:
                raise ValueError(
                    f"{other} and {name} both act on {group.name} at the {mechanism.site} site, where "
                    "their order would matter; give each its own layers with where="
                )


def _check_optimizer(taken: Sequence[Decision], optimizer: Optimizer | None) -> None:
    needing = [d for d in taken if d.mechanism.site in ("rate", "structure")]
    if not needing:
        return
    names = ", ".join(dict.fromkeys(type(d.mechanism).__name__ for d in needing))
    if optimizer is None:
        raise ValueError(
            f"{names} acts on the optimizer's step, and no optimizer was given; call "
            "bouton.attach(model, optimizer, ...)"
        )
    held = {id(weight) for settings in optimizer.param_groups for weight in settings["params"]}
    if missing := dict.fromkeys(d.group.name for d in needing if id(d.group.weight) not in held):
        raise ValueError(
            f"{names} needs weights that the optimizer does not hold: {', '.join(missing)}; build the "
            "optimizer from this model's parameters, add them with optimizer.add_param_group, freeze "
            "them, or leave them out with where="
        )


def _reason(mechanism: Mechanism, group: SynapseGroup) -> str | None:
    if not is_wanted(mechanism.where, group):
        return "not chosen by where="
    if group.lookup and mechanism.where is None:
        return "an embedding, which where= must name to be taken"
    if group.frozen:
        return FROZEN
    if reason := _no_real_numbers(group.weight):
        return reason
    sites = [mechanism.site, *(["observe"] if mechanism.observes else [])]
    if reasons := [group.unreachable[site] for site in sites if site in group.unreachable]:
        return reasons[0]
    return mechanism.serves(group)


def _no_real_numbers(weight: Tensor) -> str | None:
    if weight.layout != torch.strided:
        return f"stored as {weight.layout}; mechanisms act on dense weights"
    if weight.dtype not in _DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        return f"of {weight.dtype}; mechanisms act on real numbers ({names})"
    return None


def _nothing_taken(mechanism: Mechanism, model: nn.Module, own: Sequence[Decision]) -> str:
    left = "; ".join(f"{decision.group.name}: {decision.reason}" for decision in own)
    return (
        f"{mechanism} found no weight to act on. {left or _has(model, ())}. "
        "Use another where=, readout= or layer type"
    )


def _has(model: nn.Module, groups: Sequence[SynapseGroup]) -> str:
    if groups:
        return (
            f"the model has: {', '.join(path or '(the model itself)' for g in groups for path in g.paths)}"
        )
    kinds = Counter(type(module).__name__ for module in model.modules())
    return f"bouton looks for {', '.join(layer_types())}, and the model has: " + ", ".join(
        f"{count} {kind}" for kind, count in kinds.items()
    )
