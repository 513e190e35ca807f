"""The contract of a synaptic mechanism: four sites, what a rule sees, and the registry.

A mechanism is a frozen dataclass that states a *site* and a *rule*. The rule works on one weight tensor
seen as ``[node, fan-in...]``; the engine (:mod:`bouton.attachment`) does everything else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from bouton.passage import Passage
from bouton.synapse import SynapseGroup

Where = str | Sequence[str] | Callable[[str, nn.Module], bool] | None


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
        name: the weight's name in ``model.named_parameters()``.
        stream: where random draws come from.
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

    @property
    def fan_in(self) -> int:
        """Number of synapses of one node."""
        return self.weight[0].numel() if len(self.weight) else 0

    def generator(self) -> torch.Generator:
        """A generator for the next draw, on the weight's device."""
        return self.stream.generator(self.weight.device)

    def uniform(self, low: float | Tensor, high: float | Tensor) -> Tensor:
        """Draw from U[low, high] in the shape of the weight, for 16-bit weights in float32."""
        return low + (high - low) * self._empty().uniform_(generator=self.generator())

    def normal(self) -> Tensor:
        """Draw from N(0, 1) in the shape of the weight, for 16-bit weights in float32."""
        return self._empty().normal_(generator=self.generator())

    def _empty(self) -> Tensor:
        # contiguous whatever the weight's memory format is, so that the draws do not depend on it;
        # a 16-bit draw has so few values that its mean is off
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


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Base of all mechanisms: which weights it takes, its state, and its way to JSON and back.

    A subclass states ``site`` (a key of :data:`SITES`) and defines ``rule`` as that site's protocol says.

    Args:
        where: a glob or list of globs over module paths, or a predicate ``(path, module) -> bool``;
            None takes every weight that the mechanism can serve.

    Example:
        >>> class LargeIsSlow(Mechanism):
        ...     site = "rate"
        ...     def rule(self, synapses):
        ...         size = synapses.weight.abs()
        ...         return (2 - size / size.mean()).clamp(0.5, 1.5)
    """

    where: Where = None

    def __post_init__(self) -> None:
        where = self.where
        if where is None or isinstance(where, str):
            return
        if callable(where) and not isinstance(where, nn.Module):
            return
        if not isinstance(where, list | tuple) or not all(isinstance(item, str) for item in where):
            raise ValueError(
                f"{type(self).__name__}(where={where!r}): use a glob such as 'blocks.*', a list of globs, "
                "or a function (path, module) -> bool"
            )
        object.__setattr__(self, "where", tuple(where))  # JSON knows lists only

    # Not fields: defaults that a subclass may turn into a class attribute or a field of its own.
    site = ""
    scope = "update"  # rate site: scale the applied "update", or the "gradient" that the optimizer sees
    every = 1  # structure site: optimizer steps from one call of the rule to the next
    reset_moments = True  # structure site: the optimizer forgets what it knew of changed synapses
    last = False  # structure site: runs after the others, as a projection must
    direction = "forward"  # wiring site: transform the "forward" output, or the error on its way "backward"
    relays = (
        False  # wiring site, backward: errors of the rule go to the first layer, and forward from there
    )
    observes = False  # any site: call `observe` after each forward pass in training mode

    def serves(self, group: SynapseGroup) -> str | None:
        """None if this mechanism can serve ``group``, otherwise the reason why not."""
        return None

    def prepare(self, synapses: Synapses) -> dict[str, Tensor]:
        """The state that the rule needs on this weight, made once by ``attach``."""
        return {}

    def observe(self, synapses: Synapses, output: Tensor) -> None:
        """See a layer's raw output, detached; for a mechanism that ``observes``.

        It may only update tensors of ``synapses.state``. Under activation checkpointing it sees each output
        twice.
        """

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values, and the class's name under ``"name"``.

        Raises:
            ValueError: a field holds a callable, which JSON cannot.
        """
        values: dict[str, Any] = {"name": type(self).__name__}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if callable(value) or isinstance(value, Mapping):
                raise ValueError(
                    f"{type(self).__name__}.{item.name} is the {type(value).__name__} {_name_of(value)}, "
                    "which cannot be written as JSON; use a name or a glob instead"
                )
            values[item.name] = list(value) if isinstance(value, tuple) else value
        return values

    def describe(self) -> str:
        """All fields as one line of JSON, callables by their names: to compare, not to build from."""
        values = {"name": type(self).__name__, **vars(self)}
        return json.dumps(values, default=_name_of)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the registered mechanism that :meth:`to_dict` described.

        Raises:
            ValueError: no mechanism of that name is registered, or it has no such field.
        """
        arguments = dict(values)
        name = arguments.pop("name", None)
        if name not in _REGISTRY:
            raise ValueError(f"no mechanism is called {name!r}; there are: {', '.join(_REGISTRY)}")
        kind = _REGISTRY[name].cls
        if not issubclass(kind, cls):
            raise ValueError(f"{cls.__name__}.from_dict was given a {name}; use Mechanism.from_dict")
        known = [item.name for item in dataclasses.fields(kind)]
        if unknown := sorted(set(arguments) - set(known)):
            raise ValueError(f"{name} has no field {unknown}; its fields are: {', '.join(known)}")
        return kind(**arguments)


@dataclass(frozen=True)
class Entry:
    """A registered mechanism: its class, its paper, and the configurations that every test runs."""

    cls: type[Mechanism]
    paper: str
    neutral: tuple[Mechanism, ...]
    examples: tuple[Mechanism, ...]


_REGISTRY: dict[str, Entry] = {}
_M = TypeVar("_M", bound=type[Mechanism])


def register(
    *, paper: str, neutral: Sequence[Mapping[str, Any]], examples: Sequence[Mapping[str, Any]] = ({},)
) -> Callable[[_M], _M]:
    """Class decorator that adds a mechanism to the registry, and so to the contract tests and the lab.

    Args:
        paper: short reference.
        neutral: arguments of the configurations that must leave training bit-identical to plain training.
        examples: arguments of the configurations under which every promise is tested.
    """

    def add(cls: _M) -> _M:
        if cls.__name__ in _REGISTRY:
            raise ValueError(f"a mechanism called {cls.__name__} is registered already; take another name")
        _REGISTRY[cls.__name__] = Entry(
            cls=cls,
            paper=paper,
            neutral=tuple(cls(**arguments) for arguments in neutral),
            examples=tuple(cls(**arguments) for arguments in examples),
        )
        return cls

    return add


def checked_clip(owner: str, clip: Sequence[float] | None) -> tuple[float, float] | None:
    """``clip`` as a tuple (JSON knows lists only), once it is seen to be valid."""
    if clip is None:
        return None
    if not isinstance(clip, list | tuple) or len(clip) != 2 or not 0 <= clip[0] <= clip[1] > 0:
        raise ValueError(f"{owner}(clip={clip!r}): use (low, high) with 0 <= low <= high > 0, or None")
    return (clip[0], clip[1])


def _name_of(value: object) -> str:
    # never a memory address, which differs from process to process
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def registry() -> dict[str, Entry]:
    """All registered mechanisms by name."""
    return dict(_REGISTRY)
