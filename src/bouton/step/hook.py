"""The rate and the structure site: what happens around an optimizer's step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from bouton.claim import Claim, Claims, claims_at
from bouton.compiled import keep_out_of_graphs
from bouton.fused.stepping import Fused
from bouton.native.ready import is_watched
from bouton.state.skipped import Verdict
from bouton.step.advance import is_undisturbed, known_advance
from bouton.step.callers import is_rehearsal, is_within_step
from bouton.step.moments import fresh_moments, reset_moments
from bouton.step.own_step import OwnStep
from bouton.step.rates import Scaling
from bouton.step.snapshot import Snapshot, take_snapshots
from bouton.step.structure import rewire
from bouton.step.updates import known_update
from bouton.stored import read_weight
from bouton.switch import Switch
from bouton.synapse import SynapseGroup, find_moved
from bouton.tensors.processes import process_count
from bouton.tensors.shards import is_spread, mixing, refuse_part_of_flat, spread

_IN_NO_GRAPH = "bouton acts around an optimizer's step; compile the step without fullgraph=True"


class StepHook:
    """Scales updates and rewires synapses around the steps of one optimizer.

    Its hooks are those of the optimizer and of weights, which torch never copies: a copy of this object
    hooks the copied optimizer and weights anew.
    """

    def __init__(
        self,
        optimizer: Optimizer | None,
        claims: Claims,
        switch: Switch,
        sources: Mapping[nn.Parameter, Tensor] | None = None,
    ) -> None:
        self._optimizer, self._claims, self._switch = optimizer, claims, switch
        self._sources = sources or {}  # the tensors whose gradients autograd makes, where not the weights
        self._rates = claims_at(claims, "rate")
        self._gradient_rates = claims_at(claims, "rate", scope="gradient")
        self._structures = {
            group: sorted(own, key=lambda claim: claim.mechanism.last)
            for group, own in claims_at(claims, "structure").items()
        }
        self._weights = dict.fromkeys([*self._rates, *self._gradient_rates, *self._structures])
        self._spread = [group.weight for group in self._rates if is_spread(group.weight)]
        self._known = known_update(optimizer)
        self._scalings = [Scaling(*rates, known_advance(optimizer)) for rates in self._rates.items()]
        self._observes = any(scaling.own.observes for scaling in self._scalings)
        self._fresh = {
            group: fresh_moments(optimizer, group.weight)
            for group, own in self._structures.items()
            if optimizer and any(claim.mechanism.reset_moments for claim in own)
        }
        self._depth = 0  # of step within step
        self._acts = False  # on the step that is under way
        self._before: dict[SynapseGroup, Snapshot] = {}  # before the step that is under way
        self._handles: list[RemovableHandle] = []
        self._hook()

    def _hook(self) -> None:
        if self._optimizer is not None:
            own = "_before_step", "_after_step", "_scale_gradient"
            keep_out_of_graphs(StepHook, *own, reason=_IN_NO_GRAPH)
            self._handles.append(self._optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(self._optimizer.register_step_post_hook(self._after_step))
        for group in self._gradient_rates:
            # On the weight itself, before gradients add up: right for accumulation and closures.
            source = self._sources.get(group.weight, group.weight)
            self._handles.append(source.register_hook(partial(self._scale_gradient, group)))

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        # what is kept alive, and what a copy would hook again
        self._handles, self._optimizer, self._claims = [], None, []
        self._rates, self._gradient_rates, self._structures, self._fresh = {}, {}, {}, {}
        self._weights, self._scalings, self._sources = {}, [], {}

    def remodel(self) -> None:
        """Run every structure mechanism once, now.

        Raises:
            ValueError: no structure mechanism is attached.
        """
        if not self._structures:
            raise ValueError("no structure mechanism is attached; add one, such as SpineRemodeling()")
        for group, claims in self._structures.items():
            if not group.in_place:
                _refuse_another(group)
            for claim in claims:
                self._rewire(group, claim)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": [], "_before": {}, "_depth": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hook()

    def _before_step(self, optimizer: Optimizer, *arguments: Any) -> None:
        # torch hooks the step of every class: where a subclass calls super().step(), hooks run twice.
        # A depth left over from a step that raised is told from that by a look at the stack.
        if self._depth:
            if is_within_step(optimizer):
                self._depth += 1
                return
            for scaling in self._scalings:
                scaling.forget(optimizer)
        self._depth = 1
        self._acts = self._switch.on and not is_rehearsal()
        if not self._acts:
            return
        moved = find_moved(self._weights)
        if moved is not None:
            _refuse_another(moved)
        if self._scalings:
            self._begin(optimizer, _is_given_closure(*arguments))

    def _begin(self, optimizer: Optimizer, closure: bool) -> None:
        known = self._known if getattr(optimizer, "found_inf", None) is None else None
        self._before, rest = {}, self._scalings
        if isinstance(optimizer, Fused):
            rest = [scaling for scaling in rest if not scaling.seed(optimizer)]
        try:
            own = self._before_step, self._after_step
            if not closure and known and is_undisturbed(optimizer, *own) and not is_watched():
                # processes meet for a survey, and must meet in one order
                meet = self._observes and process_count() > 1
                rest = [s for s in rest if (meet and s.own.observes) or not s.own.take(optimizer)]
            if rest:
                with torch.no_grad(), mixing(*self._spread):
                    copied = [s.group for s in rest if s.begin(optimizer, known, closure)]
                    self._before = take_snapshots(copied)
        except BaseException:
            for scaling in self._scalings:
                scaling.own.give_back()
                scaling.forget(optimizer)
            raise

    def _after_step(self, optimizer: Optimizer, *arguments: Any) -> None:
        self._depth -= 1
        if self._depth or not self._acts:
            return
        # A fused optimizer under GradScaler is stepped even where it skips, and says so on the device.
        skipped = getattr(optimizer, "found_inf", None)
        if skipped is None:
            for _, claim in self._claims:
                memory = claim.memory
                if memory.doubt is not None:
                    memory.settle()
                memory.step += 1
            self._act(optimizer, None)
            return
        verdict, before_step = Verdict(skipped), []
        for _, claim in self._claims:
            claim.memory.settle()
            before_step.append(claim.memory.counts)
            claim.memory.step += 1
        self._act(optimizer, skipped)
        for (_, claim), counts in zip(self._claims, before_step, strict=True):
            claim.memory.doubt = (verdict, claim.memory.counts.since(counts))

    def _act(self, optimizer: Optimizer, skipped: Tensor | None) -> None:
        if self._scalings:
            try:
                self._scale(optimizer, skipped)
            except BaseException:  # of a rule, and no weight's step is to be missing
                with torch.no_grad():
                    for scaling in self._scalings:
                        scaling.own.make_plain(optimizer)
                        scaling.forget(optimizer)
                raise
        for group, claims in self._structures.items():
            for claim in claims:
                if claim.memory.step % claim.mechanism.every == 0 and group.weight.grad is not None:
                    self._rewire(group, claim)

    def _scale(self, optimizer: Optimizer, skipped: Tensor | None) -> None:
        due: list[OwnStep] = []
        rest: list[Scaling] = []
        for scaling in self._scalings:  # of all before any rule is asked, which may fail
            if scaling.own.give_back():
                due.append(scaling.own)
            else:
                rest.append(scaling)
        graph = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # as no_grad(), which takes four functions of Python
        try:
            for own in due:
                own.make(optimizer)
            if rest:
                with mixing(*self._spread):
                    for scaling in rest:
                        before = self._before.pop(scaling.group, None)
                        scaling.end(optimizer, self._known, before, skipped)
        finally:
            torch._C._set_grad_enabled(graph)

    def _scale_gradient(self, group: SynapseGroup, gradient: Tensor) -> Tensor:
        if self._switch.on:
            for claim in self._gradient_rates[group]:
                # not the parameter: that may be a part of the weight, and this the gradient of the whole
                weight = read_weight(group.layers[0], group.parameter)
                gradient = gradient * spread(claim.rate(weight, gradient, group.beside()), gradient)
        return gradient

    def _rewire(self, group: SynapseGroup, claim: Claim) -> None:
        if not group.frozen:  # since attach
            with torch.no_grad(), mixing(group.weight):
                self._write(group, claim)

    def _write(self, group: SynapseGroup, claim: Claim) -> None:
        weight, optimizer = group.weight, self._optimizer
        skipped = getattr(optimizer, "found_inf", None)
        spared = group.spared()
        if skipped is not None:
            never = torch.zeros_like(weight, dtype=torch.bool) if spared is None else spared
            spared = spread(never, weight) | (skipped != 0)
        changed = rewire(group, claim, spared, skipped)
        claim.memory.count(changed)
        if optimizer and claim.mechanism.reset_moments:
            reset_moments(optimizer, weight, changed, self._fresh[group])


def check_free(optimizer: Optimizer | None, groups: Iterable[SynapseGroup]) -> None:
    """Refuse weights on whose steps another attachment acts, which may hold them through other layers.

    Raises:
        ValueError: one of the weights is taken.
    """
    if optimizer is None:
        return
    taken = {
        group.weight
        for hook in optimizer._optimizer_step_post_hooks.values()
        if isinstance(owner := getattr(hook, "__self__", None), StepHook)
        for group in owner._weights
    }
    for group in groups:
        if group.weight in taken:
            raise ValueError(
                f"{group.name} is attached already, through another layer that shares this weight; give "
                "all mechanisms to one bouton.attach on a module that holds both"
            )


def _refuse_another(group: SynapseGroup) -> NoReturn:
    refuse_part_of_flat(group.name, group.weight)
    raise ValueError(
        f"{group.name} is another parameter than at bouton.attach (replaced, pruned, parametrised, "
        "sharded by fully_shard or loaded with assign=True); detach the handle before, and attach "
        "again after. With fully_shard: shard the model, build the optimizer, then call bouton.attach"
    )


def _is_given_closure(positional: tuple[Any, ...], named: dict[str, Any]) -> bool:
    if len(positional) == 1 and not named:  # the optimizer alone, as most often
        return False
    return any(callable(argument) for argument in [*positional[1:], *named.values()])
