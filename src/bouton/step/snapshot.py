"""What weights were before a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn

from bouton.stored import read_weight
from bouton.synapse import SynapseGroup


class Snapshot(NamedTuple):
    """A weight before a step: the stored parameter, and what rules see of it."""

    stored: Tensor
    effective: Tensor
    companions: tuple[Tensor, ...]


def take_snapshots(groups: Iterable[SynapseGroup]) -> dict[SynapseGroup, Snapshot]:
    """Copy the weights of all groups, with their companions, which may be weights of other groups."""
    copies: dict[tuple[nn.Module, str], Tensor] = {}

    def copied(layer: nn.Module, parameter: str) -> Tensor:
        if (layer, parameter) not in copies:
            copies[layer, parameter] = read_weight(layer, parameter).clone()
        return copies[layer, parameter]

    snapshots = {}
    for group in groups:
        layer = group.layers[0]
        effective = copied(layer, group.parameter)
        stored = effective if group.stored == group.parameter else group.weight.detach().clone()
        companions = tuple(copied(layer, name) for name in group.companions)
        snapshots[group] = Snapshot(stored, effective, companions)
    return snapshots
