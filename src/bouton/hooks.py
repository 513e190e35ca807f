"""The forward hook that serves the wiring and the error site of one layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bouton.claim import Claim

# A layer that a mechanism took bears this attribute, a plain string that copies and pickles with it.
MARK = "_bouton"


class _Modulate:
    """Multiplies the error that passes a layer's output."""

    def __init__(self, factor: Tensor) -> None:
        self.factor = factor

    def __call__(self, error: Tensor) -> Tensor:
        return error * self.factor


@dataclass
class LayerHook:
    """Forward hook of one layer: modulates the error at its output, then transforms the output.

    The error is modulated at the raw output, before any wiring, because that is where it is the error of
    the node. A hook on the output works with in-place activations and fires once under checkpointing,
    which a full backward hook on the module does not.
    """

    parameter: str
    errors: list[Claim]
    wirings: list[Claim]
    enabled: bool = True

    def __call__(self, module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> Tensor:
        """Run by torch after the layer's forward."""
        if not self.enabled:
            return output
        weight: Tensor = getattr(module, self.parameter)
        if self.errors and output.requires_grad:
            with torch.no_grad():
                for claim in self.errors:
                    factor = claim.error_factor(weight).to(output.dtype)
                    output.register_hook(_Modulate(factor))
        for claim in self.wirings:
            output = claim.transform(weight, output)
        return output


def layer_hooks(model: nn.Module) -> Iterator[LayerHook]:
    """All hooks of this library on ``model``."""
    for module in model.modules():
        for hook in module._forward_hooks.values():
            if isinstance(hook, LayerHook):
                yield hook


def marks(model: nn.Module) -> dict[str, str]:
    """The paths of all layers that a mechanism took, and the names of these mechanisms."""
    return {
        path: module.__dict__[MARK] for path, module in model.named_modules() if MARK in module.__dict__
    }


def strip(model: nn.Module) -> int:
    """Take all hooks and marks of this library off ``model``; returns how many layers bore one."""
    marked = 0
    for module in model.modules():
        for key in [k for k, hook in module._forward_hooks.items() if isinstance(hook, LayerHook)]:
            del module._forward_hooks[key]
        marked += module.__dict__.pop(MARK, None) is not None
    return marked
