"""Layers that were frozen when mechanisms were attached, and train later."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from bouton.optimizer_hook import OptimizerHook
from bouton.passes.layer import MARK
from bouton.synapse import SynapseGroup


class ThawWatch(OptimizerHook):
    """Says once that a layer, left out because it was frozen, takes gradients now."""

    def __init__(self, optimizer: Optimizer, frozen: Sequence[SynapseGroup]) -> None:
        self._frozen = list(frozen)
        super().__init__(optimizer)

    def _hook(self) -> list[RemovableHandle]:
        return [self._optimizer.register_step_pre_hook(self._look)] if self._frozen else []

    def _look(self, *call: object) -> None:
        thawed = [group for group in self._frozen if not group.frozen and group.weight.grad is not None]
        self._frozen = [group for group in self._frozen if group not in thawed]
        plain = [group for group in thawed if MARK not in group.layers[0].__dict__]
        if plain:
            warnings.warn(
                f"{', '.join(group.name for group in plain)}: left out by bouton.attach because it was "
                "frozen, and trains now without mechanisms; to take it in, call bouton.attach once more "
                f"with where={[group.path for group in plain]}",
                stacklevel=4,
            )
