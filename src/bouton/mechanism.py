"""The contract of a synaptic mechanism, and the registry.

A mechanism is a frozen dataclass that states a *site* and a *rule* (:mod:`bouton.sites`). The rule works on
one weight tensor seen as ``[node, fan-in...]``; the engine (:mod:`bouton.attachment`) does everything else.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from torch import Tensor, nn

from bouton.fused.rates import SeededRates
from bouton.sites import Deviation, Synapses
from bouton.synapse import SynapseGroup

Where = str | Sequence[str] | Callable[[str, nn.Module], bool] | None


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Base of all mechanisms: which weights it takes, its state, and its way to JSON and back.

    A subclass states ``site`` (a key of :data:`bouton.SITES`) and defines ``rule`` as that site's protocol
    says.

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
    direct = False  # wiring site, backward: the rule reads the errors of the read-out
    relays = (
        False  # wiring site, backward: the rule's error goes to the first layer, and forward from there
    )
    sums = (
        1  # wiring, forward: the rule does no more than hand each member of so many nodes the sum of them
    )
    in_parts = False  # rate, structure: the rule takes a weight of fully_shard as a DTensor, and not whole
    blind = False  # rate: the rule reads neither weight nor gradient, only its state and its survey
    fixed = False  # rate, blind: what `deviation` returns never changes, and has the shape of the weight
    # rate, structure: the rule may be given some of the nodes at a time, and a weight as it was before the
    # step but for its last bit, where the optimizer tells what it added
    rowwise = False
    observes = False  # any site: call `observe` after each forward pass in training mode

    def serves(self, group: SynapseGroup) -> str | None:
        """None if this mechanism can serve ``group``, otherwise the reason why not."""
        return None

    def prepare(self, synapses: Synapses) -> dict[str, Tensor]:
        """The state that the rule needs on this weight, made once by ``attach``."""
        return {}

    def survey(self, synapses: Synapses) -> dict[str, Tensor]:
        """What the rule needs to know of the whole weight, such as a mean: once a step, before it is made.

        The rule of a ``blind`` or ``rowwise`` mechanism finds it in ``self.surveyed(synapses)``. Entries
        with as many rows as the weight has nodes are given to it row by row.
        """
        return {}

    def surveyed(self, synapses: Synapses) -> Mapping[str, Tensor]:
        """What :meth:`survey` found; it is asked now where it was not yet."""
        return self.survey(synapses) if synapses.survey is None else synapses.survey

    def deviation(self, synapses: Synapses) -> Deviation | None:
        """What ``rule`` returns at the rate site as a :class:`bouton.Deviation`, if that is less work."""
        return None

    def seeded(self, synapses: Synapses) -> SeededRates | None:
        """The rates of ``rule`` where a key alone makes them, for the optimizers of :mod:`bouton.fused`."""
        return None

    def observe(self, synapses: Synapses, output: Tensor) -> None:
        """See a layer's raw output, detached; for a mechanism that ``observes``.

        It may only update tensors of ``synapses.state``. Under activation checkpointing it sees an output
        once more where that is computed again: all samples of a layer alike, but not all layers.
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
        if not isinstance(name, str) or name not in _REGISTRY:
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
        raise ValueError(
            f"{owner}(clip={clip!r}): use (low, high) with 0 <= low <= high and high > 0, or None"
        )
    return (clip[0], clip[1])


def _name_of(value: object) -> str:
    # never a memory address, which differs from process to process
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def registry() -> dict[str, Entry]:
    """All registered mechanisms by name."""
    return dict(_REGISTRY)
