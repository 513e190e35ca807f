"""What a mechanism remembers of one weight, and how it is saved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bouton.sites import RandomStream
from bouton.state.skipped import Counts, Verdict
from bouton.tensors.shards import is_spread, spread, whole

_PARTS = {"shape", "step", "events", "draws", "changed", "tensors", "made"}


def _none() -> Tensor:
    return torch.zeros((), dtype=torch.int64, device="cpu")


@dataclass
class Memory:
    """What a mechanism remembers of one weight."""

    key: str  # in a state dict
    shape: tuple[int, ...]  # of the weight
    stream: RandomStream
    states: list[dict[str, Tensor]] = field(default_factory=list)  # one for each block of the weight
    device: torch.device | None = None  # of these, once it is known
    prepared: frozenset[str] = frozenset()  # the names of what the mechanism made at attach
    step: int = 0
    events: int = 0
    changed: Tensor = field(default_factory=_none)  # structure: synapses changed, on the weight's device
    doubt: tuple[Verdict, Counts] | None = None  # the last step, if it may have been none

    def clear(self) -> None:
        """Forget everything."""
        self.step = self.events = self.stream.count = 0
        self.states, self.device, self.changed, self.doubt = [], None, _none(), None

    def move(self, device: torch.device) -> None:
        """Follow a weight to where it is now."""
        for state in self.states:
            state |= {name: tensor.to(device) for name, tensor in state.items()}
        self.device = device

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

    def count(self, changed: Tensor) -> None:
        """Add an event that changed these synapses to the turnover, without waiting for the device."""
        self.events += 1
        # over small numbers and not truth values, which takes a CPU half the time
        short = changed.numel() < 2**31 and not is_spread(changed)
        number = changed.view(torch.uint8).sum(dtype=torch.int32) if short else whole(changed.sum())
        self.changed = self.changed.to(number.device) + number

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return self.__dict__

    def save(self) -> dict[str, Any]:
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
        """Refuse what is no state of this weight."""
        if missing := _PARTS - values.keys():
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

    def load(self, values: dict[str, Any]) -> None:
        """Take over what :meth:`save` gave."""
        self.states = [
            {name: _as_here(tensor, own.get(name, tensor)) for name, tensor in state.items()}
            for state, own in zip(_joined(values), self.states, strict=True)
        ]
        self.step, self.events = values["step"], values["events"]
        self.stream.count, self.doubt, self.device = values["draws"], None, None
        self.changed = values["changed"].clone()


def _as_here(tensor: Tensor, own: Tensor) -> Tensor:
    """A copy, spread over processes and laid out in memory as here, however it was where it was saved."""
    return torch.empty_like(own, dtype=tensor.dtype).copy_(spread(tensor, own))


def _joined(values: dict[str, Any]) -> list[dict[str, Tensor]]:
    """The tensors of each block: those made at attach, and those made since."""
    return [
        {**tensors, **dict(made)} for tensors, made in zip(values["tensors"], values["made"], strict=True)
    ]


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
