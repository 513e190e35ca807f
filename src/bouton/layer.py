"""What sits on a layer: a mark, and the forward hook that serves the wiring and the error site."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from bouton.claim import Claim

if TYPE_CHECKING:
    from bouton.attachment import Attachment

MARK = "_bouton"  # the attribute under which a layer bears its mark


class Mark:
    """Says which mechanisms took a layer, and which attachment they belong to.

    A copied or unpickled layer bears a mark without an attachment: no optimizer acts on the copy.
    """

    def __init__(self, names: str, attachment: Attachment | None = None) -> None:
        self.names = names
        self._attachment = weakref.ref(attachment) if attachment else None

    @property
    def attachment(self) -> Attachment | None:
        """The attachment at work on this layer, if there is one."""
        return self._attachment() if self._attachment else None

    def __reduce__(self) -> tuple[type[Mark], tuple[str]]:
        return (Mark, (self.names,))


class Switch:
    """On or off, for all hooks of one attachment; a copy is on, whatever the original is."""

    def __init__(self) -> None:
        self.on = True

    def __reduce__(self) -> tuple[type[Switch], tuple[()]]:
        return (Switch, ())


@dataclass
class _Modulate:
    """Multiplies the error that passes a layer's output."""

    factor: Tensor
    switch: Switch

    def __call__(self, error: Tensor) -> Tensor:
        return error * self.factor if self.switch.on else error


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
    switch: Switch

    def __call__(self, module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> Tensor:
        """Run by torch after the layer's forward."""
        if not self.switch.on:
            return output
        weight: Tensor = getattr(module, self.parameter)
        if output.requires_grad:
            for claim in self.errors:
                factor = claim.error_factor(weight).to(output.dtype)
                output.register_hook(_Modulate(factor, self.switch))
        for claim in self.wirings:
            output = claim.transform(weight, output)
        return output


def clear_layer(layer: nn.Module) -> None:
    """Take the mark and the hook off a layer."""
    for key in [k for k, hook in layer._forward_hooks.items() if isinstance(hook, LayerHook)]:
        del layer._forward_hooks[key]
    layer.__dict__.pop(MARK, None)
