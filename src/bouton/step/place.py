"""Where an optimizer holds a weight."""

from __future__ import annotations

from torch.optim import Optimizer

from bouton.step.updates import Settings
from bouton.synapse import SynapseGroup


class Place:
    """The place of one weight among an optimizer's parameters; found again wherever that was changed."""

    def __init__(self, group: SynapseGroup) -> None:
        self._group = group
        self._place: tuple[int, int] | None = None
        self.is_only = True  # or the weight is listed more than once

    def settings(self, optimizer: Optimizer) -> Settings:
        """The weight's parameter group.

        Raises:
            ValueError: it is in none.
        """
        weight = self._group.weight
        if self._place is not None:
            group, place = self._place
            try:
                settings: Settings = optimizer.param_groups[group]
                if settings["params"][place] is weight:
                    return settings
            except IndexError:
                pass
        for group, settings in enumerate(optimizer.param_groups):
            places = [number for number, other in enumerate(settings["params"]) if other is weight]
            if places:
                self._place, self.is_only = (group, places[0]), len(places) == 1
                return settings
        raise ValueError(
            f"{self._group.name} is no longer among the optimizer's parameters; detach the handle, and "
            "attach again with the optimizer that steps it"
        )
