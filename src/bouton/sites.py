"""The four sites of a training step: what a rule sees there, and what it returns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bouton.passage import Passage
from bouton.tensors.draws import Key, normal, uniform
from bouton.tensors.precision import wide
from bouton.tensors.processes import summed
from bouton.tensors.shards import spread


@dataclass
class RandomStream:
    """Random draws that depend on a seed, a name and how often was drawn, and on nothing else.

    Each draw has a key of its own, so that the whole state is one integer, and the draws of one mechanism
    on one weight do not depend on which others are attached.
    """

    seed: int
    name: str
    count: int = 0

    def key(self) -> Key:
        """The key of the next draw."""
        text = f"{self.seed}/{self.name}/{self.count}".encode()
        self.count += 1
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:], "big")

    def generator(self, device: torch.device) -> torch.Generator:
        """A generator for the next draw."""
        high, low = self.key()
        # torch takes seeds up to 2**63 - 1 on every device
        return torch.Generator(device).manual_seed((high << 32 | low) >> 1)


@dataclass(frozen=True)  # for which torch.compile guards what is read alone, and not each layer's name
class Synapses:
    """What a rule sees: one weight tensor as ``[node, fan-in...]``, and what belongs to it.

    Attributes:
        weight: the weight, detached; at the rate site, its value before the optimizer's step.
        gradient: the gradient in the same shape where there is one, as at the rate and structure sites.
        state: the mechanism's own tensors on this weight, made by :meth:`Mechanism.prepare`; a rule may
            replace its entries, and a ``rowwise`` one must change them in place.
        step: optimizer steps since ``attach``; at the rate and structure sites this one is counted, except
            where gradients are scaled, which comes before it.
        axis: the axis of the layer's output that holds the nodes, counted from the end.
        companions: further weights of the same layer that lead into the same nodes, as the recurrent one
            of an LSTM does.
        depth: where the weight stands in the model: 0 for the first, 1 for the last.
        name: the weight's name in the model's ``state_dict()``, of several the first of a layer.
        stream: where random draws come from.
        alone: True outside of the optimizer's step, where other processes may be doing something else.
        start: the place of the first of these synapses in the whole weight, counted row by row.
        survey: what :meth:`Mechanism.survey` found on the whole weight; None where it was not asked yet.
    """

    weight: Tensor
    gradient: Tensor | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    axis: int = -1
    stream: RandomStream = field(default_factory=lambda: RandomStream(0, ""))
    companions: tuple[Tensor, ...] = ()
    depth: float = 0.0
    name: str = ""
    alone: bool = True
    start: int = 0
    survey: Mapping[str, Tensor] | None = None

    @property
    def fan_in(self) -> int:
        """Number of synapses of one node."""
        return self.weight.shape[1:].numel() if len(self.weight) else 0

    @staticmethod
    def of(**attributes: Any) -> Synapses:
        """Synapses of which all attributes are given, in less time than a frozen class takes."""
        made = object.__new__(Synapses)
        made.__dict__.update(attributes)
        return made

    def but(self, **changes: Any) -> Synapses:
        """A copy with some attributes changed; ``dataclasses.replace`` takes six times as long."""
        return Synapses.of(**{**self.__dict__, **changes})

    def rows(self, first: int, end: int) -> Synapses:
        """The synapses of some of the nodes, which draw what they draw as a part of the whole."""
        nodes = len(self.weight)

        def part(tensor: Tensor) -> Tensor:
            return tensor[first:end] if tensor.ndim and len(tensor) == nodes else tensor

        return self.but(
            weight=self.weight[first:end],
            gradient=None if self.gradient is None else self.gradient[first:end],
            state={name: part(tensor) for name, tensor in self.state.items()},
            companions=tuple(part(companion) for companion in self.companions),
            start=self.start + first * self.fan_in,
            survey=None if self.survey is None else {n: part(t) for n, t in self.survey.items()},
        )

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes that train this model together.

        For what each process sees of its own batches, such as counts made in :meth:`Mechanism.observe`.
        The processes are those of torch's default group. They meet at the optimizer's step alone:
        elsewhere, as in ``handle.stats()`` and with ``scope="gradient"``, the result is ``tensor`` itself,
        and so it is in a single process.
        """
        return tensor if self.alone else summed(tensor)

    def laid_out(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape, the same in all processes, spread over them as the weight is.

        The tensor itself where the weight is not spread. For draws by functions of torch of which
        :meth:`uniform` and :meth:`normal` know nothing.
        """
        return spread(tensor, self.weight)

    def generator(self) -> torch.Generator:
        """A generator for the next draw, on the weight's device; other devices draw other numbers."""
        return self.stream.generator(self.weight.device)

    def uniform(self, low: float, high: float) -> Tensor:
        """Draw from U[low, high) in the shape of the weight, the same on every device."""
        return self._drawn(partial(uniform, low=low, high=high))

    def normal(self) -> Tensor:
        """Draw from N(0, 1) in the shape of the weight, the same on every device up to rounding."""
        return self._drawn(normal)

    def _drawn(self, draw: Callable[..., Tensor]) -> Tensor:
        weight = self.weight
        # of the whole weight, so that draws do not depend on the number of processes; in float32 at least,
        # because a 16-bit draw has so few values that its mean is off
        dtype = wide(weight.dtype)
        return self.laid_out(draw(self.stream.key(), weight.shape, dtype, weight.device, self.start))


class Rewiring(NamedTuple):
    """What a structure rule returns.

    ``changed`` is a boolean mask and ``values`` the new weights, both ``[node, fan-in...]``.
    """

    changed: Tensor
    values: Tensor


class Deviation(NamedTuple):
    """A rate as what it differs from 1 by: ``(1 + shift + scale * values * nodes) * factor``.

    ``values`` has the shape of the weight, or one that broadcasts to it, and any real type; its memory may
    be used again at the mechanism's next call. If given, ``nodes`` has a factor for each node, in the shape
    ``[node, 1...]``, and ``factor`` a further one for each node or synapse.
    """

    values: Tensor
    scale: float = 1.0
    nodes: Tensor | None = None
    shift: float = 0.0
    factor: Tensor | None = None


class WiringRule(Protocol):
    """Forward: transform a layer's output, whose nodes lie on ``synapses.axis``.

    A rule that draws is wrong under activation checkpointing, which runs the forward pass twice.
    """

    def rule(self, synapses: Synapses, output: Tensor) -> Tensor:
        """The transformed output."""
        ...


class BackwardWiringRule(Protocol):
    """Backward, with ``direction = "backward"``: the error at a layer's input, in the input's shape."""

    def rule(self, synapses: Synapses, passage: Passage) -> Tensor:
        """The error that is sent down instead of the back-propagated one."""
        ...


class ErrorRule(Protocol):
    """Backward: a factor ``[node]`` for the error at each node; weights, biases and layers below see it."""

    def rule(self, synapses: Synapses) -> Tensor:
        """The factor."""
        ...


class RateRule(Protocol):
    """Update: a factor ``[node]`` or ``[node, fan-in...]`` for the applied update of each synapse.

    To be cheap, a mechanism may say more of its rule: see ``blind`` and ``rowwise`` of
    :class:`bouton.Mechanism`, and its methods ``survey`` and ``deviation``.
    """

    def rule(self, synapses: Synapses) -> Tensor:
        """The factor."""
        ...


class StructureRule(Protocol):
    """After every ``every``-th step: which synapses change, and to what."""

    def rule(self, synapses: Synapses) -> Rewiring:
        """The mask and the values."""
        ...


SITES: dict[str, type] = {
    "wiring": WiringRule,
    "error": ErrorRule,
    "rate": RateRule,
    "structure": StructureRule,
}
