"""A claim: one mechanism on one weight, with all that the mechanism remembers of that weight."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from bouton.layer_types import Layout
from bouton.mechanism import Mechanism
from bouton.passage import Passage
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
from bouton.state.memory import Memory
from bouton.synapse import SynapseGroup
from bouton.tensors.shards import all_hold_a_part, is_spread, mixing, whole


@dataclass
class Claim:
    """One mechanism on one weight.

    It refers neither to the model nor to the optimizer nor to a ``where`` function, so that it may sit in a
    hook of the model and be copied and pickled with it.
    """

    mechanism: Mechanism
    name: str
    layout: Layout
    depth: float
    memory: Memory
    sample: tuple[Tensor, Tensor] | None = None  # backward wiring: errors at the output, and sent down

    def __post_init__(self) -> None:
        # Weights change block by block; a layer's output has one node for all of its blocks.
        by_block = self.mechanism.site in ("rate", "structure")
        self._view = self.layout.split if by_block else self.layout.whole
        self._is_plain = self.layout.blocks == 1 and not self.layout.transposed
        self._is_blind = self.mechanism.blind
        self.deviates = type(self.mechanism).deviation is not Mechanism.deviation
        self.key = self.memory.key  # this claim's name in a state dict

    @classmethod
    def of(cls, mechanism: Mechanism, group: SynapseGroup, seed: int) -> Claim:
        """The claim of ``mechanism`` on ``group``, with the state that the mechanism needs there."""
        mechanism = copy.copy(mechanism)
        object.__setattr__(mechanism, "where", None)  # may be a lambda, which does not pickle
        key = f"{type(mechanism).__name__}/{group.name}"
        memory = Memory(key, tuple(group.weight.shape), RandomStream(seed, key))
        claim = cls(mechanism, group.name, group.layout, group.depth, memory)
        claim.reset(group)
        return claim

    @torch.no_grad()
    def reset(self, group: SynapseGroup) -> None:
        """Start afresh on a weight as it is now."""
        self.memory.clear()
        self.sample = None
        with mixing(group.weight):
            self.memory.states = [
                # no view of the weight
                {name: tensor.clone() for name, tensor in self.mechanism.prepare(synapses).items()}
                for synapses in self.blocks(*self._shown(group.effective(), None, group.beside()))
            ]
        self.memory.prepared = frozenset().union(*self.memory.states)
        self.memory.device = group.weight.device

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sample": None}  # errors of training data have no place in a saved model

    def transform(self, weight: Tensor, output: Tensor) -> Tensor:
        """The layer's output after a wiring rule."""
        (synapses,) = self.blocks(weight)
        transformed = cast(WiringRule, self.mechanism).rule(synapses, output)
        self._check(transformed, output.shape)
        return transformed

    def send(self, weight: Tensor, passage: Passage) -> Tensor:
        """The error at the layer's input after a backward wiring rule."""
        (synapses,) = self.blocks(weight)
        sent = cast(BackwardWiringRule, self.mechanism).rule(synapses, passage)
        self._check(sent, passage.shape)
        return sent

    def observe(self, weight: Tensor, output: Tensor) -> None:
        """Show the mechanism a layer's raw output."""
        for synapses in self.blocks(weight):
            self.mechanism.observe(synapses, output.detach())

    def error_factor(self, weight: Tensor, companions: Sequence[Tensor] = ()) -> Tensor:
        """The factor of an error rule, shaped to multiply the layer's output."""
        (synapses,) = self.blocks(weight, companions=companions)
        rule: ErrorRule = self.mechanism  # type: ignore[assignment]  # by its site
        factor = rule.rule(synapses)
        if not isinstance(factor, Tensor) or factor.shape != synapses.weight.shape[:1]:
            self._refuse(factor, synapses.weight.shape[:1])
        trailing = -1 - self.layout.output_axis
        return factor.reshape(-1, *[1] * trailing) if trailing else factor

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
        self.memory.settle()
        blocks = self.blocks(*self._shown(weight, gradient, companions), alone=alone)
        with self.kept(skipped):
            rates = [
                self.factor(synapses).expand(synapses.weight.shape).to(weight.dtype) for synapses in blocks
            ]
        return self.layout.join(rates)

    def surveyed(self, weight: Tensor, companions: Sequence[Tensor]) -> list[Synapses]:
        """What the rule is to see in a step that comes, with what it finds on the weight before."""
        self.memory.settle()
        blocks = self.blocks(weight, None, companions, alone=False)
        step = self.memory.step + 1  # counted by then
        blocks = [synapses.but(step=step) for synapses in blocks]
        return [synapses.but(survey=self.mechanism.survey(synapses)) for synapses in blocks]

    def factor(self, synapses: Synapses) -> Tensor:
        """The factor of a rate rule, which broadcasts to the shape of ``synapses.weight``."""
        rule: RateRule = self.mechanism  # type: ignore[assignment]  # by its site
        rate = rule.rule(synapses)
        shape = synapses.weight.shape
        if not isinstance(rate, Tensor) or rate.shape not in (shape[:1], shape):
            self._refuse(rate, shape[:1], shape)
        return rate.reshape(-1, *[1] * (len(shape) - 1)) if rate.ndim == 1 else rate

    def rewire(
        self,
        weight: Tensor,
        gradient: Tensor | None,
        companions: Sequence[Tensor] = (),
        skipped: Tensor | None = None,
    ) -> Rewiring:
        """The outcome of a structure rule, in the shape of ``weight`` as torch stores it."""
        self.memory.settle()
        blocks = self.blocks(*self._shown(weight, gradient, companions), alone=False)
        with self.kept(skipped):
            rewired = [self.rewiring(synapses) for synapses in blocks]
        values = self.layout.join([block.values.to(weight.dtype) for block in rewired])
        return Rewiring(self.layout.join([block.changed for block in rewired]), values)

    def rewiring(self, synapses: Synapses) -> Rewiring:
        """The outcome of a structure rule on some synapses."""
        returned = cast(StructureRule, self.mechanism).rule(synapses)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ValueError(
                f"the structure rule of {type(self.mechanism).__name__} returned "
                f"{type(returned).__name__} for {self.name}; expected two tensors: "
                "bouton.Rewiring(changed, values)"
            )
        self._check(returned[0], synapses.weight.shape, dtype=torch.bool)
        self._check(returned[1], synapses.weight.shape)
        return Rewiring(*returned)

    @contextmanager
    def kept(self, skipped: Tensor | None) -> Iterator[None]:
        """Give states back what they held before this context, on the device, where the step was none."""
        if skipped is None:
            yield
            return
        before = [{name: tensor.clone() for name, tensor in state.items()} for state in self.memory.states]
        yield
        self._take_back(before, skipped)

    def _take_back(self, before: list[dict[str, Tensor]], skipped: Tensor) -> None:
        for state, old in zip(self.memory.states, before, strict=True):
            state |= {name: torch.where(skipped == 0, state[name], old[name]) for name in old}

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

    def blocks(
        self,
        weight: Tensor,
        gradient: Tensor | None = None,
        companions: Sequence[Tensor] = (),
        alone: bool = True,
    ) -> list[Synapses]:
        """What the rule sees of detached tensors: one part for each block of the weight."""
        view, memory = self._view, self.memory
        weights = (weight,) if self._is_plain else view(weight)
        gradients = None
        if gradient is not None:
            if gradient.layout is not torch.strided:
                self.refuse_sparse(gradient)
            if not self._is_blind:
                detached = gradient.detach()
                gradients = (detached,) if self._is_plain else view(detached)
        beside = [view(companion) for companion in companions] if companions else ()
        if not memory.states:
            memory.states = [{} for _ in weights]
        if memory.device != weight.device:
            memory.move(weight.device)
        found, start = [], 0
        for block, state in enumerate(memory.states):
            synapses = object.__new__(Synapses)  # as Synapses.of(), in one function less
            synapses.__dict__.update(
                weight=weights[block],
                gradient=None if gradients is None else gradients[block],
                state=state,
                step=memory.step,
                axis=self.layout.output_axis,
                stream=memory.stream,
                companions=tuple([views[block] for views in beside]) if beside else (),
                depth=self.depth,
                name=self.name,
                alone=alone,
                start=start,
                survey=None,
            )
            found.append(synapses)
            start += weights[block].numel()
        return found

    def refuse_sparse(self, gradient: Tensor | None) -> None:
        """Refuse a gradient that holds some entries only.

        Raises:
            ValueError: it does.
        """
        if gradient is not None and gradient.layout != torch.strided:
            raise ValueError(
                f"{self.name} has a sparse gradient ({gradient.layout}), and "
                f"{type(self.mechanism).__name__} acts on dense ones; use sparse=False where it is made"
            )

    def _check(self, returned: object, *expected: torch.Size, dtype: torch.dtype | None = None) -> None:
        if not isinstance(returned, Tensor) or returned.shape not in expected:
            self._refuse(returned, *expected, dtype=dtype)
        if dtype not in (None, returned.dtype):
            self._refuse(returned, *expected, dtype=dtype)

    def _refuse(
        self, returned: object, *expected: torch.Size, dtype: torch.dtype | None = None
    ) -> NoReturn:
        if isinstance(returned, Tensor):
            found = f"{returned.dtype} of shape {list(returned.shape)}"
        else:
            found = type(returned).__name__
        shapes = " or ".join(str(list(shape)) for shape in expected)
        raise ValueError(
            f"the {self.mechanism.site} rule of {type(self.mechanism).__name__} returned {found} for "
            f"{self.name}; expected a {dtype or 'floating point'} tensor of shape {shapes}"
        )


Claims = Sequence[tuple[SynapseGroup, Claim]]


def claims_at(claims: Claims, site: str, scope: str = "update") -> dict[SynapseGroup, list[Claim]]:
    """The claims that act at one site, by the weight that they act on."""
    found: dict[SynapseGroup, list[Claim]] = {}
    for group, claim in claims:
        if (claim.mechanism.site, claim.mechanism.scope) == (site, scope):
            found.setdefault(group, []).append(claim)
    return found
