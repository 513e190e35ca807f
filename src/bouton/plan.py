"""Plan, check and report: which mechanism takes which weight, decided before anything is touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.optim import Optimizer

from bouton.mechanism import SITES, Mechanism
from bouton.synapse import SynapseGroup, find_others

# Two factors commute; two transformations of one output, or of one weight, do not.
_EXCLUSIVE = ("wiring", "structure")


@dataclass(frozen=True)
class Decision:
    """Whether one mechanism takes one synapse group; ``reason`` says why not, and is None if it does."""

    mechanism: Mechanism
    group: SynapseGroup
    reason: str | None = None


@dataclass(frozen=True)
class Report:
    """What ``attach`` did, weight by weight; ``print`` it.

    ``others`` names the weights of layer types that bouton does not know.
    """

    decisions: tuple[Decision, ...]
    others: tuple[str, ...]
    seed: int

    def __str__(self) -> str:
        lines = []
        for mechanism, decisions in _by_mechanism(self.decisions):
            taken = sum(decision.reason is None for decision in decisions)
            name = type(mechanism).__name__
            lines.append(f"{name} ({mechanism.site}): {taken} of {len(decisions)} weights")
            for decision in decisions:
                group = decision.group
                shape = "x".join(map(str, group.weight.shape))
                tied = f", shared with {', '.join(group.aliases)}" if group.aliases else ""
                left = f"  left: {decision.reason}" if decision.reason else ""
                lines.append(f"  {'-' if left else '+'} {group.name} [{shape}]{tied}{left}")
        if self.others:
            lines.append(f"no mechanism reaches: {', '.join(self.others)} (unknown layer type)")
        return "\n".join([*lines, f"seed {self.seed}"])


def make_plan(
    model: nn.Module,
    optimizer: Optimizer | None,
    groups: Sequence[SynapseGroup],
    mechanisms: Sequence[Mechanism],
    seed: int,
) -> Report:
    """Decide for every mechanism and every synapse group, and refuse what cannot be right.

    Raises:
        ValueError: see :func:`bouton.attach`.
    """
    if not mechanisms:
        raise ValueError("no mechanism given; pass a list such as [bouton.Grapes()]")
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
    _check_overlaps(taken)
    _check_optimizer(taken, optimizer)
    return Report(tuple(decisions), find_others(model, groups), seed)


def _check_mechanism(mechanism: Mechanism, model: nn.Module, groups: Sequence[SynapseGroup]) -> None:
    if not isinstance(mechanism, Mechanism):
        raise ValueError(f"{mechanism!r} is no mechanism; pass an instance such as bouton.Grapes()")
    name = type(mechanism).__name__
    if mechanism.site not in SITES:
        raise ValueError(f"{name}.site is {mechanism.site!r}; use one of: {', '.join(SITES)}")
    if not callable(getattr(mechanism, "rule", None)):
        raise ValueError(f"{name} has no method rule(self, synapses); see bouton.SITES")
    for pattern in _patterns(mechanism):
        if not any(fnmatchcase(path, pattern) for group in groups for path in group.paths):
            raise ValueError(
                f"{name}(where={pattern!r}) matches no layer with a weight; {_has(model, groups)}"
            )


def _check_overlaps(taken: Sequence[Decision]) -> None:
    uses = Counter((decision.group, type(decision.mechanism).__name__) for decision in taken)
    for (group, name), count in uses.items():
        if count > 1:
            raise ValueError(
                f"{name} takes {group.name} {count} times; keep one, or give each its own layers "
                "with where="
            )
    for site in _EXCLUSIVE:
        owners: dict[SynapseGroup, str] = {}
        for decision in taken:
            if decision.mechanism.site != site:
                continue
            name = type(decision.mechanism).__name__
            other = owners.setdefault(decision.group, name)
            if other != name:
                raise ValueError(
                    f"{other} and {name} both act on {decision.group.name} at the {site} site, where "
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
    if not _wanted(mechanism, group):
        return "not chosen by where="
    if group.frozen:
        return "frozen (requires_grad is False)"
    if mechanism.site in ("wiring", "error") and not group.called:
        return "torch reads this weight without calling the layer, so no hook can see its output"
    return mechanism.serves(group)


def _wanted(mechanism: Mechanism, group: SynapseGroup) -> bool:
    where = mechanism.where
    if where is None:
        return True
    if callable(where):
        # a shared module stands at several paths, and each of them counts
        return any(map(where, group.paths, group.layers))
    return any(fnmatchcase(path, pattern) for path in group.paths for pattern in _patterns(mechanism))


def _patterns(mechanism: Mechanism) -> Iterable[str]:
    where = mechanism.where
    if where is None or callable(where):
        return ()
    return (where,) if isinstance(where, str) else where


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
    return (
        "bouton looks for Linear, Conv1d/2d/3d and ConvTranspose1d/2d/3d, and the model has: "
        + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    )


def _by_mechanism(
    decisions: Sequence[Decision],
) -> list[tuple[Mechanism, list[Decision]]]:
    grouped: dict[int, tuple[Mechanism, list[Decision]]] = {}
    for decision in decisions:
        own = grouped.setdefault(id(decision.mechanism), (decision.mechanism, []))
        own[1].append(decision)
    return list(grouped.values())
