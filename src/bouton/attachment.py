"""The engine: attach mechanisms to a model and its optimizer, and take them off again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle, unserializable_hook

from bouton.claim import Claim
from bouton.hooks import MARK, LayerHook, layer_hooks, marks, strip
from bouton.mechanism import Mechanism, RandomStream
from bouton.moments import fresh_moments, reset_moments
from bouton.plan import Report, make_plan
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
            does not hold a weight that a rate or structure mechanism needs; a model of which some layer
            is attached already. Nothing has been changed then.

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
    if found := marks(model):
        path, names = next(iter(found.items()))
        raise ValueError(
            f"this model is attached already ({names} on {path or 'the model itself'}); call detach() on "
            "its handle and give all mechanisms to one bouton.attach, or, if this is a copy of an "
            "attached model, call bouton.detach(model) first"
        )
    groups = find_groups(model, readout)
    return Attachment(model, optimizer, make_plan(model, optimizer, groups, mechanisms, seed))


def detach(model: nn.Module) -> None:
    """Make a copy of an attached model plain, such as a deepcopy or an unpickled one.

    For the model that was attached, use :meth:`Attachment.detach`, which frees the optimizer too.

    Raises:
        ValueError: the model bears no mechanism.
    """
    if not strip(model):
        raise ValueError("this model bears no mechanism, so there is nothing to detach")


class Attachment:
    """Mechanisms at work on a model and its optimizer; made by :func:`attach`.

    ``copy.deepcopy((model, optimizer, handle))`` gives a second, independent set at work.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | None, plan: Report) -> None:
        self._model, self._optimizer, self._plan = model, optimizer, plan
        self._paused = False
        self._claims: list[tuple[SynapseGroup, Claim]] = []
        for decision in plan.decisions:
            if decision.reason is None:
                group, mechanism = decision.group, decision.mechanism
                stream = RandomStream(plan.seed, f"{type(mechanism).__name__}/{group.name}")
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
        self._before: dict[SynapseGroup, Tensor] = {}  # weights before the step that is under way
        self._handles: list[RemovableHandle] = []
        self._hook_layers()
        self._hook_optimizer()

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The mechanisms in the order in which they were given."""
        return tuple({id(d.mechanism): d.mechanism for d in self._plan.decisions}.values())

    def report(self) -> Report:
        """Which weights each mechanism took, which it left, and why."""
        return self._plan

    def stats(self) -> dict[str, dict[str, dict[str, float]]]:
        """What each mechanism does at present: mechanism -> weight's name -> numbers.

        Error and rate mechanisms: mean, std, min and max of the factor. Structure mechanisms: turnover
        (share of the synapses that one event replaces, on average), changed and events so far. Waits for
        the device; not for use in every step.
        """
        found: dict[str, dict[str, dict[str, float]]] = {}
        for group, claim in self._claims:
            own = found.setdefault(type(claim.mechanism).__name__, {})
            own[group.name] = claim.stats(group.weight)
        return found

    def detach(self) -> None:
        """Take everything off: model and optimizer are plain again. Safe to call twice."""
        strip(self._model)
        for handle in self._handles:
            handle.remove()
        self._handles, self._claims, self._structures = [], [], {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside this context, model and optimizer behave as if nothing was attached."""
        before = self._paused
        self._pause(True)
        try:
            yield
        finally:
            self._pause(before)

    def remodel(self) -> None:
        """Run every structure mechanism once, now.

        Raises:
            ValueError: no structure mechanism is attached.
        """
        if not self._structures:
            raise ValueError("no structure mechanism is attached; add one, such as SpineRemodeling()")
        for group, claims in self._structures.items():
            for claim in claims:
                self._rewire(group, claim)

    def state_dict(self) -> dict[str, Any]:
        """All state of the mechanisms: plain numbers, strings and tensors."""
        return {
            "seed": self._plan.seed,
            "mechanisms": [mechanism.describe() for mechanism in self.mechanisms],
            "claims": {claim.key: claim.state_dict() for _, claim in self._claims},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of another attachment of the same mechanisms to the same model.

        Raises:
            ValueError: other mechanisms or other weights; nothing has been loaded then.
        """
        own = self.state_dict()
        for name in ("mechanisms", "seed"):
            if state.get(name) != own[name]:
                raise ValueError(
                    f"this state was saved with {name} {state.get(name)}, and attached are {own[name]}; "
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

    def _hook_layers(self) -> None:
        errors, wirings = self._at("error"), self._at("wiring")
        for group, claim in self._claims:
            for layer in group.layers:
                names = [*filter(None, [layer.__dict__.get(MARK)]), type(claim.mechanism).__name__]
                setattr(layer, MARK, ", ".join(dict.fromkeys(names)))
        for group in dict.fromkeys([*errors, *wirings]):
            for layer in dict.fromkeys(group.layers):
                hook = LayerHook(group.parameter, errors.get(group, []), wirings.get(group, []))
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
        return {**self.__dict__, "_handles": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copied model has its hooks; those of optimizers and of weights are never copied.
        self.__dict__.update(state)
        if self._claims:
            self._hook_optimizer()

    @torch.no_grad()
    def _before_step(self, *arguments: Any) -> None:
        if not self._paused:
            self._before = {group: group.weight.clone() for group in self._rates}

    @torch.no_grad()
    def _after_step(self, *arguments: Any) -> None:
        if self._paused:
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
                if claim.step % claim.mechanism.every == 0:
                    self._rewire(group, claim)

    def _scale_gradient(self, group: SynapseGroup, gradient: Tensor) -> Tensor:
        if not self._paused:
            for claim in self._gradient_rates[group]:
                gradient = gradient * claim.rate(group.weight, gradient)
        return gradient

    @torch.no_grad()
    def _rewire(self, group: SynapseGroup, claim: Claim) -> None:
        weight = group.weight
        changed, values = claim.rewire(weight, weight.grad)
        torch.where(changed, values, weight, out=weight)
        if self._optimizer is not None and claim.mechanism.reset_moments:
            reset_moments(self._optimizer, weight, changed, self._fresh[group])

    def _pause(self, paused: bool) -> None:
        self._paused = paused
        for hook in layer_hooks(self._model):
            hook.enabled = not paused
