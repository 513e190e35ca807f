"""The engine: attach mechanisms to a model and its optimizer, and take them off again."""

from __future__ import annotations

import copy
import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle, unserializable_hook

from bouton.claim import Claim
from bouton.layer import MARK, LayerHook, Mark, Switch, clear_layer
from bouton.mechanism import Mechanism, RandomStream
from bouton.moments import fresh_moments, reset_moments
from bouton.plan import Decision, Report, make_plan, make_report
from bouton.synapse import SynapseGroup, find_groups


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
            it gives to a fresh weight; a layer that is attached already; a lazy layer without a weight.
            Nothing has been changed then.

    Example:
        >>> import bouton, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> handle = bouton.attach(model, optimizer, [bouton.Grapes()])
        >>> print(handle.report())
        Grapes (error): 1 of 2 weights
          + 0.weight [4x8]
          - 2.weight [2x4]  left: the read-out is never modulated
        seed 0
        >>> handle.detach()
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    groups = find_groups(model, readout)
    decisions = make_plan(model, optimizer, groups, mechanisms)
    report = make_report(model, decisions, operator.index(seed))
    return Attachment(optimizer, mechanisms, decisions, report)


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
        if mark and mark.attachment:
            mark.attachment.detach()  # from all of its layers, and from its optimizer
        clear_layer(layer)


class Attachment:
    """Mechanisms at work on a model and its optimizer; made by :func:`attach`.

    ``copy.deepcopy((model, optimizer, handle))`` gives a second, independent set at work.
    """

    def __init__(
        self,
        optimizer: Optimizer | None,
        mechanisms: Sequence[Mechanism],
        decisions: Sequence[Decision],
        report: Report,
    ) -> None:
        self._optimizer, self._mechanisms, self._report = optimizer, tuple(mechanisms), report
        self._claims: list[tuple[SynapseGroup, Claim]] = []
        for decision in decisions:
            if decision.reason is None:
                group, mechanism = decision.group, copy.copy(decision.mechanism)
                object.__setattr__(mechanism, "where", None)  # may be a lambda, which does not pickle
                stream = RandomStream(report.seed, f"{type(mechanism).__name__}/{group.name}")
                claim = Claim(mechanism, group.name, group.layout, stream)
                claim.prepare(group.weight)
                self._claims.append((group, claim))
        self._rates = self._at("rate")
        self._gradient_rates = self._at("rate", scope="gradient")
        self._structures = self._at("structure")
        self._fresh = {
            group: fresh_moments(optimizer, group.weight)
            for group, claims in self._structures.items()
            if optimizer and any(claim.mechanism.reset_moments for claim in claims)
        }
        self._switch = Switch()
        self._depth = 0  # of step within step
        self._before: dict[SynapseGroup, Tensor] = {}  # weights before the step that is under way
        self._handles: list[RemovableHandle] = []
        self._hook_optimizer()
        self._hook_layers()
        self._mark_layers()

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
        (share of the synapses that one event replaces, on average), changed and events so far. Waits for
        the device; not for use in every step.

        Raises:
            ValueError: the handle is detached.
        """
        self._check_attached()
        found: dict[str, dict[str, dict[str, float]]] = {}
        for group, claim in self._claims:
            own = found.setdefault(type(claim.mechanism).__name__, {})
            own[group.name] = claim.stats(group.weight)
        return found

    def detach(self) -> None:
        """Take everything off: model and optimizer are plain again. Safe to call twice."""
        for group, _ in self._claims:
            for layer in group.layers:
                clear_layer(layer)
        for handle in self._handles:
            handle.remove()
        self._switch.on = False  # for graphs that were built before
        self._handles, self._claims, self._optimizer = [], [], None
        self._rates, self._gradient_rates, self._structures, self._fresh = {}, {}, {}, {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside this context, model and optimizer behave as if nothing was attached."""
        before = self._switch.on
        self._switch.on = False
        try:
            yield
        finally:
            self._switch.on = before

    def remodel(self) -> None:
        """Run every structure mechanism once, now.

        Raises:
            ValueError: no structure mechanism is attached.
        """
        self._check_attached()
        if not self._structures:
            raise ValueError("no structure mechanism is attached; add one, such as SpineRemodeling()")
        for group, claims in self._structures.items():
            self._check_same_weight(group)
            for claim in claims:
                self._rewire(group, claim)

    def state_dict(self) -> dict[str, Any]:
        """All state of the mechanisms: plain numbers, strings and tensors.

        Raises:
            ValueError: the handle is detached.
        """
        self._check_attached()
        return {
            "seed": self._report.seed,
            "mechanisms": [mechanism.describe() for mechanism in self.mechanisms],
            "claims": {claim.key: claim.state_dict() for _, claim in self._claims},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of another attachment of the same mechanisms to the same model.

        Raises:
            ValueError: other mechanisms or other weights, or the handle is detached; nothing has been
                loaded then.
        """
        own = self.state_dict()
        if missing := own.keys() - state.keys():
            raise ValueError(f"this is no state of an attachment: it lacks {', '.join(sorted(missing))}")
        for name in ("mechanisms", "seed"):
            if state[name] != own[name]:
                raise ValueError(
                    f"this state was saved with {name} {state[name]}, and attached are {own[name]}; "
                    "attach with the same arguments before loading"
                )
        if different := sorted(set(state["claims"]) ^ set(own["claims"])):
            raise ValueError(f"this state is of another model; they differ in {', '.join(different)}")
        for _, claim in self._claims:
            claim.check_fits(state["claims"][claim.key])
        for _, claim in self._claims:
            claim.load_state_dict(state["claims"][claim.key])

    def _at(self, site: str, scope: str = "update") -> dict[SynapseGroup, list[Claim]]:
        found: dict[SynapseGroup, list[Claim]] = {}
        for group, claim in self._claims:
            if (claim.mechanism.site, claim.mechanism.scope) == (site, scope):
                found.setdefault(group, []).append(claim)
        return found

    def _mark_layers(self) -> None:
        names: dict[nn.Module, list[str]] = {}
        for group, claim in self._claims:
            for layer in dict.fromkeys(group.layers):  # a shared module is listed at each of its paths
                names.setdefault(layer, []).append(type(claim.mechanism).__name__)
        for layer, own in names.items():
            setattr(layer, MARK, Mark(", ".join(own), self))

    def _hook_layers(self) -> None:
        errors, wirings = self._at("error"), self._at("wiring")
        for group in dict.fromkeys([*errors, *wirings]):
            hook = LayerHook(group.parameter, errors.get(group, []), wirings.get(group, []), self._switch)
            for layer in dict.fromkeys(group.layers):
                layer.register_forward_hook(hook)

    def _hook_optimizer(self) -> None:
        if self._optimizer is not None:
            self._handles.append(self._optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(self._optimizer.register_step_post_hook(self._after_step))
        for group in self._gradient_rates:
            # On the weight itself, before gradients add up: right for accumulation and closures.
            hook = unserializable_hook(partial(self._scale_gradient, group))
            self._handles.append(group.weight.register_hook(hook))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": [], "_before": {}, "_depth": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copied model has its hooks; those of optimizers and of weights are never copied.
        self.__dict__.update(state)
        if self._claims:
            self._hook_optimizer()
            self._mark_layers()

    def __copy__(self) -> Attachment:
        raise ValueError(
            "a handle has no shallow copy, which would act on the same weights once more; use "
            "copy.deepcopy((model, optimizer, handle))"
        )

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, *arguments: Any) -> None:
        # torch hooks the step of every class: where a subclass calls super().step(), hooks run twice.
        # A depth left over from a step that raised is told from that by a look at the stack.
        if self._depth and _steps_within_step(optimizer):
            self._depth += 1
            return
        self._depth = 1
        for group in dict.fromkeys([*self._rates, *self._structures]):
            self._check_same_weight(group)
        if self._switch.on:
            self._before = {group: group.weight.clone() for group in self._rates}

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *arguments: Any) -> None:
        self._depth -= 1
        if self._depth or not self._switch.on:
            return
        for _, claim in self._claims:
            claim.step += 1
        for group, claims in self._rates.items():
            before, weight = self._before.pop(group), group.weight
            rates = [claim.rate(before, weight.grad) for claim in claims]
            # lerp, not before + rate * (weight - before): where the rate is 1 it keeps the weight's bits
            torch.lerp(before, weight, reduce(torch.mul, rates), out=weight)
        for group, claims in self._structures.items():
            for claim in claims:
                if claim.step % claim.mechanism.every == 0 and group.weight.grad is not None:
                    self._rewire(group, claim)

    def _scale_gradient(self, group: SynapseGroup, gradient: Tensor) -> Tensor:
        if self._switch.on:
            for claim in self._gradient_rates[group]:
                gradient = gradient * claim.rate(group.weight, gradient)
        return gradient

    @torch.no_grad()
    def _rewire(self, group: SynapseGroup, claim: Claim) -> None:
        weight, optimizer = group.weight, self._optimizer
        if group.frozen:  # since attach
            return
        changed, values = claim.rewire(weight, weight.grad)
        # A fused optimizer under GradScaler steps even where it skips: then nothing may change here.
        if (skipped := getattr(optimizer, "found_inf", None)) is not None:
            changed = changed & (skipped == 0)
        claim.count(changed)
        torch.where(changed, values, weight, out=weight)
        if optimizer and claim.mechanism.reset_moments:
            reset_moments(optimizer, weight, changed, self._fresh[group])

    def _check_attached(self) -> None:
        if not self._claims:
            raise ValueError("this handle is detached; call bouton.attach again")

    def _check_same_weight(self, group: SynapseGroup) -> None:
        if group.layers[0]._parameters.get(group.parameter) is not group.weight:
            raise ValueError(
                f"{group.name} is another parameter than at bouton.attach (replaced, pruned, parametrised "
                "or loaded with assign=True); detach the handle before, and attach again after"
            )


def _steps_within_step(optimizer: Optimizer) -> bool:
    """Whether the step whose hooks run now was called from within a step of the same optimizer."""
    steps, frame = 0, sys._getframe()
    while frame.f_back:
        frame = frame.f_back
        # torch.optim.Optimizer.profile_hook_step.<locals>.wrapper, which runs the hooks around a step
        steps += frame.f_code.co_name == "wrapper" and frame.f_locals.get("self") is optimizer
    return steps > 1
