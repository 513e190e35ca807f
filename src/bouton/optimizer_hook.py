"""Hooks on an optimizer, which torch never copies with it."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


class OptimizerHook:
    """Base of what an attachment hangs on an optimizer; a copy of it hooks the copied optimizer anew."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._handles = self._hook()

    def _hook(self) -> list[RemovableHandle]:
        """Register all hooks."""
        raise NotImplementedError

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._handles = self._hook()
