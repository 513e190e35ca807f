"""The engine: attach mechanisms to a model and its optimizer, and take them off again."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from bouton.claim import Claim, claims_at
from bouton.compiled import tell_switched
from bouton.mechanism import Mechanism
from bouton.optimizer_hook import OptimizerHook
from bouton.passes.layer import MARK, Mark, clear_layer, hook_layers, mark_layers
from bouton.plan import FROZEN, Decision, make_plan
from bouton.report import Report, make_report
from bouton.state.checkpoint import CheckpointHook, State
from bouton.stats import stats_of
from bouton.step.hook import StepHook, check_free
from bouton.switch import Switch
from bouton.synapse import find_groups
from bouton.tensors.shards import refuse_flat, reshard, unsharded_parameters
from bouton.thaw import ThawWatch


def attach(
    model: nn.Module,
    optimizer: Optimizer | None,
    mechanisms: Sequence[Mechanism],
    *,
    seed: int = 0,
    readout: str | Sequence[str] | None = None,
) -> Attachment:
    """Attach synaptic mechanisms to a model and its optimizer; the training loop stays as it is.

    Args:
        model: any module; its ``state_dict`` keeps its keys.
        optimizer: the optimizer that steps the weights; may be None if no mechanism acts on the step.
        mechanisms: at most one of a kind for each weight.
        seed: seeds all draws; the global random state is never used.
        readout: path (or paths) of the read-out layer, by default the last layer with a weight in
            registration order; ``()`` for none.

    Raises:
        ValueError: a mechanism finds nothing to act on; a ``where`` or ``readout`` that names no layer;
            the same mechanism twice on one weight, or two whose order would matter; an optimizer that
            does not hold a weight that a rate or structure mechanism needs, or that cannot tell what state
            it gives to a fresh weight; a layer that is attached already; a lazy layer without a weight,
            or one on the meta device; a model in FullyShardedDataParallel. Nothing has been changed then.

    Example:
        >>> import bouton, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> handle = bouton.attach(model, optimizer, [bouton.Grapes()])
        >>> print(handle.report())
        Grapes (error): 1 of 2 weights
          + 0.weight [4x8]
          - 2.weight [2x4]  left: the read-out is never modulated
        read-out: 2; choose another with readout=
        seed 0
        >>> handle.detach()
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    refuse_flat(model)
    reshard(model)
    groups = find_groups(model, readout)
    decisions = make_plan(model, optimizer, groups, mechanisms)
    check_free(optimizer, [d.group for d in decisions if d.reason is None])
    report = make_report(model, decisions, operator.index(seed))
    return Attachment(model, optimizer, mechanisms, decisions, report)


def detach(model: nn.Module) -> None:
    """Make a model plain: an attached one whose handle is not at hand, or a copy of an attached one.

    Raises:
        ValueError: the model bears no mechanism.

    Example:
        >>> import bouton, copy, torch
        >>> model = torch.nn.Linear(8, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> handle = bouton.attach(model, optimizer, [bouton.PlasticityDiversity()])
        >>> plain = copy.deepcopy(model)
        >>> bouton.detach(plain)
    """
    marked = [module for module in model.modules() if MARK in module.__dict__]
    if not marked:
        raise ValueError("this model bears no mechanism, so there is nothing to detach")
    for layer in marked:
        mark: Mark | None = layer.__dict__.get(MARK)
        if mark and mark.owner:
            mark.owner.detach()  # from all of its layers, and from its optimizer
        clear_layer(layer)


class Attachment:
    """Mechanisms at work on a model and its optimizer; made by :func:`attach`.

    ``copy.deepcopy((model, optimizer, handle))`` gives a second, independent set at work.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        mechanisms: Sequence[Mechanism],
        decisions: Sequence[Decision],
        report: Report,
    ) -> None:
        self._mechanisms, self._report = tuple(mechanisms), report
        taken = [decision for decision in decisions if decision.reason is None]
        self._claims = [(d.group, Claim.of(d.mechanism, d.group, report.seed)) for d in taken]
        self._switch = Switch()
        scaled = claims_at(self._claims, "rate", scope="gradient")
        sources = unsharded_parameters(model, [group.weight for group in scaled])
        self._step = StepHook(optimizer, self._claims, self._switch, sources)
        self._state = State(mechanisms, report.seed, self._claims)
        self._hooks: list[OptimizerHook] = []
        if optimizer is not None:
            frozen = dict.fromkeys(d.group for d in decisions if d.reason == FROZEN)
            self._hooks = [CheckpointHook(optimizer, self._state), ThawWatch(optimizer, list(frozen))]
        hook_layers(self._claims, self._switch, sources)
        mark_layers(self._claims, self)

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The mechanisms in the order in which they were given."""
        return self._mechanisms

    def report(self) -> Report:
        """Which weights each mechanism took, which it left, and why."""
        return self._report

    def stats(self) -> dict[str, dict[str, dict[str, float]]]:
        """What each mechanism does at present: mechanism -> weight's name -> numbers.

        Error and rate mechanisms: mean, std, min and max of the factor. Structure mechanisms: turnover
        (share of the synapses that one event replaces, on average), changed and events so far. Backward
        wiring: the angle in degrees between the error sent down last and the back-propagated one. Rate and
        structure mechanisms also tell the steps that they saw: 0 if another optimizer does the stepping.
        Waits for the device; not for use in every step.

        Raises:
            ValueError: the handle is detached.
        """
        self._check_attached()
        found: dict[str, dict[str, dict[str, float]]] = {}
        for group, claim in self._claims:
            own = found.setdefault(type(claim.mechanism).__name__, {})
            own[group.name] = stats_of(claim, group)
        return found

    def detach(self) -> None:
        """Take everything off: model and optimizer are plain again. Safe to call twice.

        Weights stay as they are. A model that was trained with a wiring mechanism computes something else
        without it: keep it attached, or attach again after loading, for as long as the model is used.
        """
        for group, _ in self._claims:
            for layer in group.layers:
                clear_layer(layer)
        self._switch.on = False  # for graphs that were built before
        self._step.remove()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._claims.clear()  # for all who share the list

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside this context, model and optimizer behave as if nothing was attached."""
        before = self._switch.on
        self._turn(False)
        try:
            yield
        finally:
            self._turn(before and bool(self._claims))  # a detached handle stays off

    def _turn(self, on: bool) -> None:
        self._switch.on = on
        for group, _ in self._claims:
            tell_switched(group.layers)

    def remodel(self) -> None:
        """Run every structure mechanism once, now.

        Raises:
            ValueError: no structure mechanism is attached.
        """
        self._check_attached()
        self._step.remodel()

    def state_dict(self) -> dict[str, Any]:
        """All state of the mechanisms: plain numbers, strings and tensors.

        ``optimizer.state_dict()`` holds the same under the key ``"bouton"``. Save it on its own only where
        that key gets lost, as in the helpers of ``torch.distributed.checkpoint``.

        Raises:
            ValueError: the handle is detached.
        """
        self._check_attached()
        return self._state.save()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of another attachment of the same mechanisms to the same model.

        ``optimizer.load_state_dict()`` calls it where the state rides there.

        Raises:
            ValueError: other mechanisms or other weights, or the handle is detached; nothing has been
                loaded then.
        """
        self._check_attached()
        self._state.load(state, apart=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        mark_layers(self._claims, self)

    def __copy__(self) -> Attachment:
        raise ValueError(
            "a handle has no shallow copy, which would act on the same weights once more; use "
            "copy.deepcopy((model, optimizer, handle))"
        )

    def _check_attached(self) -> None:
        if not self._claims:
            raise ValueError("this handle is detached; call bouton.attach again")
