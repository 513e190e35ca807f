"""What is timed against plain steps: mechanisms, with the budget that each has on each workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bouton.lab.arms import describe, parse_mechanisms
from bouton.lab.bench.workloads import WORKLOADS, Workload
from bouton.mechanism import Mechanism

NEVER = 2**62  # steps
GPU_BUDGET, ON_GPU = 1.03, {("resnet18", 256), ("gpt2", 8)}


@dataclass(frozen=True, kw_only=True)
class BenchArm:
    """Mechanisms that are attached together.

    Args:
        name: what tables call them.
        mechanisms: none: a second plain training, whose ratio shows what the measurement itself adds.
        budgets: for each built-in workload the largest ratio that is meant to be on two cores.
    """

    name: str
    mechanisms: tuple[Mechanism, ...]
    budgets: Mapping[str, float] = field(default_factory=dict)

    def budget(self, workload: Workload, device: str) -> float | None:
        """The largest ratio that is meant to be.

        On a CPU the budgets are those of built-in workloads with their own settings. On a GPU there is one
        budget for every arm that has any, on GPT-2 and on ResNet-18 with batch 256.
        """
        if device == "cpu":
            return self.budgets.get(workload.name) if workload == WORKLOADS.get(workload.name) else None
        return GPU_BUDGET if self.budgets and (workload.name, workload.batch_size) in ON_GPU else None


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is timed on its own of an arm.

    Args:
        name: what it is.
        mechanisms: attached together.
        weight: of its median in the arm's ratio.
    """

    name: str
    mechanisms: tuple[Mechanism, ...]
    weight: float


def parts_of(mechanisms: Sequence[Mechanism]) -> list[Part]:
    """An arm taken apart: steps without an event, and steps that all have one.

    The cost of an event that comes every 1000 steps is never seen in 10, and its mean over the steps is
    what counts:

        ratio = ratio of steps without an event + (ratio of steps that all have one - that) / every

    Args:
        mechanisms: attached together.

    Example:
        >>> import bouton
        >>> for part in parts_of([bouton.SpineRemodeling(every=1000)]):
        ...     print(part.name, part.weight)
        without events 0.999
        SpineRemodeling in each step 0.001
        >>> [part.name for part in parts_of([bouton.Grapes()])]
        ['all steps']
    """
    quiet = [_coming(mechanism, NEVER) for mechanism in mechanisms]
    rest, parts = 1.0, []
    for number, mechanism in enumerate(mechanisms):
        if _is_rare(mechanism):
            each = list(quiet)
            each[number] = _coming(mechanism, 1)
            share = 1 / mechanism.every
            rest -= share
            name = f"{type(mechanism).__name__} in each step"
            parts.append(Part(name=name, mechanisms=tuple(each), weight=share))
    name = "without events" if parts else "all steps"
    return [Part(name=name, mechanisms=tuple(quiet), weight=rest), *parts]


def _coming(mechanism: Mechanism, every: int) -> Mechanism:
    """The mechanism with its events at another interval, if it has any that are rare."""
    return Mechanism.from_dict(mechanism.to_dict() | {"every": every}) if _is_rare(mechanism) else mechanism


def _is_rare(mechanism: Mechanism) -> bool:
    return mechanism.site == "structure" and mechanism.every > 1


def _arm(name: str, text: str, *budgets: float) -> BenchArm:
    on_cpu = dict(zip(("mlp", "resnet18", "transformer"), budgets, strict=False))
    return BenchArm(name=name, mechanisms=tuple(parse_mechanisms(text)) if text else (), budgets=on_cpu)


ARMS: tuple[BenchArm, ...] = (
    _arm("plain against plain", ""),
    _arm("Grapes, propagated", "Grapes", 1.10, 1.03, 1.03),
    _arm("Grapes, local", 'Grapes(mode="local")', 1.10, 1.03, 1.03),
    _arm("PlasticityDiversity, static", "PlasticityDiversity", 1.05, 1.03, 1.03),
    _arm(
        "PlasticityDiversity, activity-dependent",
        'PlasticityDiversity(distribution="activity")',
        *(1.15, 1.05, 1.05),
    ),
    _arm("VolumePlasticity", "VolumePlasticity", 1.25, 1.06, 1.06),
    _arm("Crystallization with diversity", "Crystallization + PlasticityDiversity", 1.20, 1.05, 1.05),
    _arm("SpineRemodeling at every step", "SpineRemodeling(every=1)", 2.50, 1.20, 1.20),
    _arm("SpineRemodeling, default schedule", "SpineRemodeling", 1.01, 1.01, 1.01),
    _arm("MultiSynapse, two synapses", "MultiSynapse(gamma=2)", 1.15, 1.03, 1.03),
    _arm(
        "all four of the core together",
        "Grapes + PlasticityDiversity + SpineRemodeling + MultiSynapse",
        *(1.35, 1.08, 1.08),
    ),
    _arm("DalePrinciple", "DalePrinciple"),
    _arm("FeedbackAlignment", "FeedbackAlignment"),
)


def arms_of(mechanisms: Sequence[str]) -> list[BenchArm]:
    """The plain arm and one for each text, as `bouton compare` reads them.

    Args:
        mechanisms: such as `Grapes()+MultiSynapse(gamma=4)`; empty: all of `ARMS`.

    Raises:
        ValueError: if a text cannot be read.

    Example:
        >>> [arm.name for arm in arms_of(["Grapes"])]
        ['plain against plain', 'Grapes']
    """
    if not mechanisms:
        return list(ARMS)
    arms = [ARMS[0]]
    for text in mechanisms:
        together = tuple(parse_mechanisms(text))
        name = " + ".join(describe(mechanism) for mechanism in together)
        if any(arm.name == name for arm in arms):
            raise ValueError(f"the arm {name} is there twice: leave one out")
        budgets = next((arm.budgets for arm in ARMS if arm.mechanisms == together), {})
        arms.append(BenchArm(name=name, mechanisms=together, budgets=budgets))
    return arms
