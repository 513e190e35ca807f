"""What a synapse group is, and how to find the synapse groups of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from bouton.layer_types import Layout, Slot, slots
from bouton.stored import prune_mask, read_weight, stored_name, stored_parameter
from bouton.tensors.shards import is_spread
from bouton.wrappers import own_name

_SHARED_AXES = "{} share this weight and read it along different axes"
_COMPUTED = "its weight is computed from other parameters, so that no single synapse can be set"


@dataclass(frozen=True, eq=False)
class SynapseGroup:
    """One weight tensor of a model: the synapses that lead into the nodes of one layer.

    ``parameter`` is the weight's name in its layer, and ``stored`` that of the parameter which holds it:
    another one where the weight is pruned or computed at each access. ``aliases`` are further paths at
    which the same weight (shared module or tied weight) is found, and ``layers`` the module at each path.
    ``elsewhere`` names the same weight in modules of other types, such as a tied embedding.
    ``unreachable`` gives the reason for each site that cannot act on this weight. ``companions`` are
    further weights of the layer that lead into the same nodes, by name. ``lookup`` marks a table whose rows
    are looked up, such as an embedding. ``depth`` is 0 for the model's first layer and 1 for its last.
    """

    path: str
    layers: tuple[nn.Module, ...]
    weight: nn.Parameter
    layout: Layout
    parameter: str = "weight"
    stored: str = "weight"
    aliases: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    readout: bool = False
    unreachable: Mapping[str, str] = field(default_factory=dict)
    companions: tuple[str, ...] = ()
    lookup: bool = False
    depth: float = 0.0

    @property
    def name(self) -> str:
        """The weight's name in ``model.named_parameters(remove_duplicate=False)``."""
        return f"{self.path}.{self.stored}" if self.path else self.stored

    @property
    def paths(self) -> tuple[str, ...]:
        """All paths at which the weight is found."""
        return (self.path, *self.aliases)

    @property
    def known_as(self) -> tuple[str, ...]:
        """The paths of all modules that hold the weight, those of other types too."""
        return (*self.paths, *(name.rpartition(".")[0] for name in self.elsewhere))

    @property
    def frozen(self) -> bool:
        """True where the weight takes no gradient."""
        return not self.weight.requires_grad

    @property
    def node_count(self) -> int:
        """Number of nodes: output features, or output channels; of all blocks together."""
        return self.layout.nodes(torch.empty(self.weight.shape, device="meta")).shape[0]

    @property
    def in_place(self) -> bool:
        """True where every layer still holds the weight that was found."""
        if hasattr(self.weight, "_fsdp_flattened"):
            return False
        held = [stored_parameter(layer, self.stored) for layer in self.layers]
        # between a forward pass and the next backward, fully_shard may leave a whole copy in the layer
        return all(weight is self.weight or self._is_copy(weight) for weight in held)

    def _is_copy(self, held: nn.Parameter | None) -> bool:
        if held is None or is_spread(held) or not is_spread(self.weight):
            return False
        return held.shape == self.weight.shape

    def effective(self) -> Tensor:
        """The weight as the forward pass uses it, detached."""
        if self.stored == self.parameter:
            return self.weight.detach()
        return read_weight(self.layers[0], self.parameter)

    def beside(self) -> tuple[Tensor, ...]:
        """The weights of ``companions``, detached."""
        return tuple(read_weight(self.layers[0], name) for name in self.companions)

    def spared(self) -> Tensor | None:
        """Which synapses must stay as they are: those pruned, and an embedding's row for padding."""
        mask = prune_mask(self.layers[0], self.parameter)
        if mask is not None:
            return mask == 0
        row = getattr(self.layers[0], "padding_idx", None) if self.lookup else None
        if row is None:
            return None
        spared = torch.zeros(self.weight.shape, dtype=torch.bool, device=self.weight.device)
        spared[row] = True
        return spared


def find_moved(groups: Iterable[SynapseGroup]) -> SynapseGroup | None:
    """The first group that is no longer :attr:`~SynapseGroup.in_place`, as is asked in each step."""
    for group in groups:
        weight = group.weight
        for layer in group.layers:
            if layer._parameters.get(group.stored) is not weight and not group.in_place:
                return group
        if hasattr(weight, "_fsdp_flattened"):
            return group
    return None


def find_groups(model: nn.Module, readout: str | Sequence[str] | None = None) -> tuple[SynapseGroup, ...]:
    """Find the synapse groups of ``model`` in registration order.

    Found are the weights of ``Linear``, ``Bilinear``, ``Conv1d/2d/3d``, ``ConvTranspose1d/2d/3d``, GPT-2's
    ``Conv1D``, ``MultiheadAttention``, ``RNN``, ``LSTM``, ``GRU`` and their cells, ``Embedding`` and
    ``EmbeddingBag``, also pruned and parametrised ones, in arbitrarily nested models; shared modules and
    tied weights are found once, frozen weights are included. Inside ``torch.compile``, an activation
    checkpoint wrapper or ``DistributedDataParallel``, layers keep the names that they have without.

    Args:
        model: any module.
        readout: path (or paths) of the read-out layer; by default the last layer with a weight in
            registration order, where a shared layer stands where it comes first; ``()`` for a model
            without one.

    Raises:
        ValueError: a ``readout`` path that is no synapse group; a lazy module that is not yet
            materialised.

    Example:
        >>> from torch import nn
        >>> [g.name for g in find_groups(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))]
        ['0.weight', '2.weight']
    """
    found: dict[nn.Parameter, list[_Place]] = {}
    first: dict[nn.Module, str] = {}  # where a layer that may be the read-out stands first
    for wrapped_path, module in model.named_modules(remove_duplicate=False):
        path = own_name(model, wrapped_path)
        for slot in slots(module):
            stored = stored_name(module, slot.parameter)
            weight = stored_parameter(module, stored)
            if isinstance(weight, UninitializedParameter):
                raise ValueError(
                    f"{path or type(module).__name__} is a lazy module without a weight yet; run one "
                    "batch through the model before bouton.attach"
                )
            if stored and weight is not None:
                found.setdefault(weight, []).append(_Place(path, module, slot, stored))
                if not slot.lookup:
                    first.setdefault(module, path)

    if readout is None:
        chosen = list(first.values())[-1:]
    else:
        chosen = [readout] if isinstance(readout, str) else list(readout)
    paths = dict.fromkeys(place.path for places in found.values() for place in places)
    if unknown := [path for path in chosen if path not in paths]:
        known = ", ".join(path or "'' (the model itself)" for path in paths)
        raise ValueError(f"readout={unknown} is no synapse group; the model has: {known}")
    owners: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, []).append(own_name(model, name))
    stack = list(first)
    return tuple(_group(places, weight, owners[weight], chosen, stack) for weight, places in found.items())


def find_others(model: nn.Module, groups: Sequence[SynapseGroup]) -> tuple[str, ...]:
    """Name the parameters with two or more axes, or without a shape yet, that are no synapse group."""
    known = {group.weight for group in groups}
    found = []
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            found.append(f"{own_name(model, name)} (not yet made)")
        elif parameter not in known and parameter.ndim > 1:
            found.append(f"{own_name(model, name)} {tuple(parameter.shape)}")
    return tuple(found)


@dataclass(frozen=True)
class _Place:
    """Where a weight was found."""

    path: str
    layer: nn.Module
    slot: Slot
    stored: str


def _group(
    places: list[_Place],
    weight: nn.Parameter,
    owners: list[str],
    readout: list[str],
    stack: list[nn.Module],
) -> SynapseGroup:
    is_readout = any(place.path in readout for place in places)
    # A table that shares its weight with a layer is named, and the layer is what mechanisms act on.
    places = [place for place in places if not place.slot.lookup] or places
    layouts = {place.slot.layout: place.path for place in places}
    unreachable = {site: reason for place in places for site, reason in place.slot.unreachable.items()}
    if len(layouts) > 1:
        reason = _SHARED_AXES.format(" and ".join(layouts.values()))
        unreachable |= {"wiring": reason, "error": reason}
    first = places[0]
    if first.stored != first.slot.parameter and prune_mask(first.layer, first.slot.parameter) is None:
        unreachable["structure"] = _COMPUTED
    paths = [place.path for place in places]
    return SynapseGroup(
        path=first.path,
        layers=tuple(place.layer for place in places),
        weight=weight,
        layout=first.slot.layout,
        parameter=first.slot.parameter,
        stored=first.stored,
        aliases=tuple(paths[1:]),
        elsewhere=tuple(name for name in owners if name not in _names(places)),
        readout=is_readout,
        unreachable=unreachable,
        companions=first.slot.companions,
        lookup=first.slot.lookup,
        depth=stack.index(first.layer) / max(len(stack) - 1, 1) if first.layer in stack else 0.0,
    )


def _names(places: list[_Place]) -> set[str]:
    return {f"{place.path}.{place.stored}".removeprefix(".") for place in places}
