"""A claim: one mechanism on one weight, with all that the mechanism remembers of that weight."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from bouton.layer_types import Layout
from bouton.mechanism import Mechanism
from bouton.passage import Passage
from bouton.shards import all_hold_a_part, is_spread, mixing, spread, whole
from bouton.sites import (
    BackwardWiringRule,
    ErrorRule,
    RandomStream,
    RateRule,
    Rewiring,
    StructureRule,
    Synapses,
    WiringRule,
)
from bouton.skipped import Counts, Verdict
from bouton.synapse import SynapseGroup


def _none() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


@dataclass
class Claim:
    """One mechanism on one weight.

    It refers neither to the model nor to the optimizer nor to a ``where`` function, so that it may sit in a
    hook of the model and be copied and pickled with it.
    """

    mechanism: Mechanism
    name: str
    layout: Layout
    stream: RandomStream
    depth: float = 0.0
    shape: tuple[int, ...] = ()  # of the weight
    states: list[dict[str, Tensor]] = field(default_factory=list)  # one for each block of the weight
    prepared: frozenset[str] = frozenset()  # the names of what the mechanism made at attach
    step: int = 0
    events: int = 0
    changed: Tensor = field(default_factory=_none)  # structure: synapses changed, on the weight's device
    sample: tuple[Tensor, Tensor] | None = None  # backward wiring: errors at the output, and sent down
    doubt: tuple[Verdict, Counts] | None = None  # the last step, if it may have been none

    @property
    def key(self) -> str:
        """This claim's name in a state dict."""
        return f"{type(self.mechanism).__name__}/{self.name}"

    @classmethod
    def of(cls, mechanism: Mechanism, group: SynapseGroup, seed: int) -> Claim:
        """The claim of ``mechanism`` on ``group``, with the state that the mechanism needs there."""
        mechanism = copy.copy(mechanism)
        object.__setattr__(mechanism, "where", None)  # may be a lambda, which does not pickle
        stream = RandomStream(seed, f"{type(mechanism).__name__}/{group.name}")
        claim = cls(mechanism, group.name, group.layout, stream, group.depth, tuple(group.weight.shape))
        claim.reset(group)
        return claim

    @torch.no_grad()
    @mixing()
    def reset(self, group: SynapseGroup) -> None:
        """Start afresh on a weight as it is now."""
        self.step = self.events = self.stream.count = 0
        self.states, self.changed, self.sample, self.doubt = [], _none(), None, None
        self.states = [
            # no view of the weight
            {name: tensor.clone() for name, tensor in self.mechanism.prepare(synapses).items()}
            for synapses in self._blocks(*self._shown(group.effective(), None, group.beside()))
        ]
        self.prepared = frozenset().union(*self.states)

    @property
    def counts(self) -> Counts:
        """What the host counts."""
        return Counts(self.step, self.events, self.stream.count)

    def settle(self) -> None:
        """Take the counts of the last step back if that was skipped, once this is known."""
        if self.doubt is None:
            return
        (verdict, counts), self.doubt = self.doubt, None
        if verdict.skipped:
            self.step -= counts.steps
            self.events -= counts.events
            self.stream.count -= counts.draws

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return {**self.__dict__, "sample": None}  # errors of training data have no place in a saved model

    def transform(self, weight: Tensor, output: Tensor) -> Tensor:
        """The layer's output after a wiring rule."""
        (synapses,) = self._blocks(weight)
        transformed = cast(WiringRule, self.mechanism).rule(synapses, output)
        self._check(transformed, [output.shape])
        return transformed

    def send(self, weight: Tensor, passage: Passage) -> Tensor:
        """The error at the layer's input after a backward wiring rule."""
        (synapses,) = self._blocks(weight)
        sent = cast(BackwardWiringRule, self.mechanism).rule(synapses, passage)
        self._check(sent, [passage.shape])
        return sent

    def observe(self, weight: Tensor, output: Tensor) -> None:
        """Show the mechanism a layer's raw output."""
        for synapses in self._blocks(weight):
            self.mechanism.observe(synapses, output.detach())

    def error_factor(self, weight: Tensor, companions: Sequence[Tensor] = ()) -> Tensor:
        """The factor of an error rule, shaped to multiply the layer's output."""
        (synapses,) = self._blocks(weight, companions=companions)
        factor = cast(ErrorRule, self.mechanism).rule(synapses)
        self._check(factor, [synapses.weight.shape[:1]])
        return factor.reshape(-1, *[1] * (-1 - self.layout.output_axis))

    def rate(
        self,
        weight: Tensor,
        gradient: Tensor | None,
        companions: Sequence[Tensor] = (),
        skipped: Tensor | None = None,
        alone: bool = True,
    ) -> Tensor:
        """The factor of a rate rule, in the shape of ``weight`` as torch stores it.

        Where ``skipped`` is not zero the step was none, and the mechanism's state stays. ``alone``: other
        processes do not ask for their rates now.
        """
        self.settle()
        rates, blocks = [], self._blocks(*self._shown(weight, gradient, companions), alone=alone)
        before = [dict(state) for state in self.states]  # on the weight's device by now
        for synapses in blocks:
            rate = cast(RateRule, self.mechanism).rule(synapses)
            shape = synapses.weight.shape
            self._check(rate, [shape[:1], shape])
            if rate.ndim == 1:
                rate = rate.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
            rates.append(rate.to(weight.dtype))
        if skipped is not None:
            for state, old in zip(self.states, before, strict=True):
                state |= {name: torch.where(skipped == 0, state[name], old[name]) for name in old}
        return self.layout.join(rates)

    def rewire(
        self, weight: Tensor, gradient: Tensor | None, companions: Sequence[Tensor] = ()
    ) -> Rewiring:
        """The outcome of a structure rule, in the shape of ``weight`` as torch stores it."""
        self.settle()
        changed, values = [], []
        for synapses in self._blocks(*self._shown(weight, gradient, companions), alone=False):
            returned = cast(StructureRule, self.mechanism).rule(synapses)
            if not isinstance(returned, tuple) or len(returned) != 2:
                raise ValueError(
                    f"the structure rule of {type(self.mechanism).__name__} returned "
                    f"{type(returned).__name__} for {self.name}; expected two tensors: "
                    "bouton.Rewiring(changed, values)"
                )
            self._check(returned[0], [synapses.weight.shape], dtype=torch.bool)
            self._check(returned[1], [synapses.weight.shape])
            changed.append(returned[0])
            values.append(returned[1].to(weight.dtype))
        return Rewiring(self.layout.join(changed), self.layout.join(values))

    def count(self, changed: Tensor) -> None:
        """Add an event that changed these synapses to the turnover, without waiting for the device."""
        self.events += 1
        number = whole(changed.sum())
        self.changed = self.changed.to(number.device) + number

    def state_dict(self) -> dict[str, Any]:
        """All that must be kept to go on exactly."""
        self.settle()
        # What a rule made since is in tuples, which torch.distributed.checkpoint loads whole. Of tensors in
        # dicts it loads only those that the state it loads into has already.
        tensors = [{name: state[name].clone() for name in sorted(self.prepared)} for state in self.states]
        made = tuple(
            tuple((name, whole(state[name]).clone()) for name in sorted(state.keys() - self.prepared))
            for state in self.states
        )
        numbers = {"step": self.step, "events": self.events, "draws": self.stream.count}
        shape, changed = list(self.shape), self.changed.clone()
        return {"shape": shape, **numbers, "changed": changed, "tensors": tensors, "made": made}

    def check_fits(self, values: dict[str, Any]) -> None:
        """Refuse what is no state of this claim."""
        if missing := _STATE - values.keys():
            raise ValueError(f"the state of {self.key} lacks {', '.join(sorted(missing))}")
        if list(values["shape"]) != list(self.shape):
            raise ValueError(
                f"the state of {self.key} is of a weight {list(values['shape'])}, and this model's is "
                f"{list(self.shape)}; load it into the model that it was saved of"
            )
        found, expected = [_shapes(state) for state in _joined(values)], [_shapes(s) for s in self.states]
        # on either side, a rule may have made further tensors since
        if len(found) != len(expected) or any(
            not self.prepared <= f.keys() or f | e != e | f for f, e in zip(found, expected, strict=True)
        ):
            raise ValueError(
                f"the state of {self.key} does not fit: it holds {found}, and this model needs {expected}"
            )

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.states = [
            # spread over processes as here, however it was where the state was saved
            {name: spread(tensor, own.get(name, tensor)).clone() for name, tensor in state.items()}
            for state, own in zip(_joined(values), self.states, strict=True)
        ]
        self.step, self.events = values["step"], values["events"]
        self.stream.count, self.doubt = values["draws"], None
        self.changed = values["changed"].clone()

    def _shown(
        self, weight: Tensor, gradient: Tensor | None, companions: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None, Sequence[Tensor]]:
        """What the rule is to see of tensors that may be spread over processes: parts, or the whole."""
        if is_spread(weight) and not self._in_parts(weight):
            gradient = None if gradient is None else whole(gradient)
            return whole(weight), gradient, [whole(companion) for companion in companions]
        return weight, gradient, companions

    def _in_parts(self, weight: Tensor) -> bool:
        mechanism, layout = self.mechanism, self.layout
        at_step = mechanism.site in ("rate", "structure") and mechanism.scope == "update"
        # what torch can view as [node, fan-in...] where rows are spread unevenly
        plain = layout.blocks == 1 and (not layout.transposed or weight.ndim == 2)
        return mechanism.in_parts and at_step and plain and all_hold_a_part(weight)

    def _blocks(
        self,
        weight: Tensor,
        gradient: Tensor | None = None,
        companions: Sequence[Tensor] = (),
        alone: bool = True,
    ) -> list[Synapses]:
        # Weights change block by block; a layer's output has one node for all of its blocks.
        view = self.layout.split if self.mechanism.site in ("rate", "structure") else self._units
        weights = view(weight.detach())
        if gradient is not None and gradient.layout != torch.strided:
            raise ValueError(
                f"{self.name} has a sparse gradient ({gradient.layout}), and "
                f"{type(self.mechanism).__name__} acts on dense ones; use sparse=False where it is made"
            )
        gradients = [None] * len(weights) if gradient is None else view(gradient.detach())
        beside = [view(companion.detach()) for companion in companions]
        if not self.states:
            self.states = [{} for _ in weights]
        for state in self.states:
            for name, tensor in state.items():
                if tensor.device != weight.device:  # the model was moved since
                    state[name] = tensor.to(weight.device)
        return [
            Synapses(
                weight=weights[block],
                gradient=gradients[block],
                state=state,
                step=self.step,
                axis=self.layout.output_axis,
                stream=self.stream,
                companions=tuple(views[block] for views in beside),
                depth=self.depth,
                name=self.name,
                alone=alone,
            )
            for block, state in enumerate(self.states)
        ]

    def _units(self, tensor: Tensor) -> tuple[Tensor]:
        return (self.layout.units(tensor),)

    def _check(
        self, returned: object, expected: list[torch.Size], dtype: torch.dtype | None = None
    ) -> None:
        if isinstance(returned, Tensor):
            if returned.shape in expected and dtype in (None, returned.dtype):
                return
            found = f"{returned.dtype} of shape {list(returned.shape)}"
        else:
            found = type(returned).__name__
        shapes = " or ".join(str(list(shape)) for shape in expected)
        raise ValueError(
            f"the {self.mechanism.site} rule of {type(self.mechanism).__name__} returned {found} for "
            f"{self.name}; expected a {dtype or 'floating point'} tensor of shape {shapes}"
        )


_STATE = {"shape", "step", "events", "draws", "changed", "tensors", "made"}


def _joined(values: dict[str, Any]) -> list[dict[str, Tensor]]:
    """The tensors of each block: those made at attach, and those made since."""
    return [
        {**tensors, **dict(made)} for tensors, made in zip(values["tensors"], values["made"], strict=True)
    ]


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


Claims = Sequence[tuple[SynapseGroup, Claim]]


def claims_at(claims: Claims, site: str, scope: str = "update") -> dict[SynapseGroup, list[Claim]]:
    """The claims that act at one site, by the weight that they act on."""
    found: dict[SynapseGroup, list[Claim]] = {}
    for group, claim in claims:
        if (claim.mechanism.site, claim.mechanism.scope) == (site, scope):
            found.setdefault(group, []).append(claim)
    return found
