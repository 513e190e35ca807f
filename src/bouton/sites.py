"""The four sites of a training step: what a rule sees there, and what it returns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bouton.passage import Passage
from bouton.processes import summed
from bouton.shards import spread


@dataclass
class RandomStream:
    """Random draws that depend on a seed, a name and how often was drawn, and on nothing else.

    Each call of :meth:`generator` is seeded afresh, so that the whole state is one integer, and the
    draws of one mechanism on one weight do not depend on which others are attached.
    """

    seed: int
    name: str
    count: int = 0

    def generator(self, device: torch.device) -> torch.Generator:
        """A generator for the next draw."""
        key = f"{self.seed}/{self.name}/{self.count}".encode()
        self.count += 1
        digest = hashlib.blake2b(key, digest_size=8).digest()
        # torch takes seeds up to 2**63 - 1 on every device
        return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


@dataclass(frozen=True)
class Synapses:
    """What a rule sees: one weight tensor as ``[node, fan-in...]``, and what belongs to it.

    Attributes:
        weight: the weight, detached; at the rate site, its value before the optimizer's step.
        gradient: the gradient in the same shape where there is one, as at the rate and structure sites.
        state: the mechanism's own tensors on this weight, made by :meth:`Mechanism.prepare`; a rule may
            replace its entries.
        step: optimizer steps since ``attach``; at the rate and structure sites this one is counted, except
            where gradients are scaled, which comes before it.
        axis: the axis of the layer's output that holds the nodes, counted from the end.
        companions: further weights of the same layer that lead into the same nodes, as the recurrent one
            of an LSTM does.
        depth: where the weight stands in the model: 0 for the first, 1 for the last.
        name: the weight's name in the model's ``state_dict()``, of several the first of a layer.
        stream: where random draws come from.
        alone: True outside of the optimizer's step, where other processes may be doing something else.
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

    @property
    def fan_in(self) -> int:
        """Number of synapses of one node."""
        return self.weight.shape[1:].numel() if len(self.weight) else 0

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
        """A generator for the next draw, on the weight's device."""
        return self.stream.generator(self.weight.device)

    def uniform(self, low: float | Tensor, high: float | Tensor) -> Tensor:
        """Draw from U[low, high] in the shape of the weight, for 16-bit weights in float32."""
        return low + (high - low) * self.laid_out(self._empty().uniform_(generator=self.generator()))

    def normal(self) -> Tensor:
        """Draw from N(0, 1) in the shape of the weight, for 16-bit weights in float32."""
        return self.laid_out(self._empty().normal_(generator=self.generator()))

    def _empty(self) -> Tensor:
        # of the whole weight and contiguous, so that draws depend neither on the number of processes nor on
        # the weight's memory format; a 16-bit draw has so few values that its mean is off
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return torch.empty(self.weight.shape, dtype=dtype, device=self.weight.device)


class Rewiring(NamedTuple):
    """What a structure rule returns.

    ``changed`` is a boolean mask and ``values`` the new weights, both ``[node, fan-in...]``.
    """

    changed: Tensor
    values: Tensor


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
    """Update: a factor ``[node]`` or ``[node, fan-in...]`` for the applied update of each synapse."""

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
