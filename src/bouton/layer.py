"""What sits on a layer: a mark, and the forward hook that serves the wiring and the error site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from bouton.claim import Claim, Claims, claims_at

MARK = "_bouton"  # the attribute under which a layer bears its mark


class Owner(Protocol):
    """What put a mark on a layer."""

    def detach(self) -> None:
        """Take it off again, with all that belongs to it."""


class Mark:
    """Says which mechanisms took a layer, and which attachment they belong to.

    A copied or unpickled layer bears a mark without an owner: no optimizer acts on the copy.
    """

    def __init__(self, names: str, owner: Owner | None = None) -> None:
        self.names, self.owner = names, owner

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


def hook_layers(claims: Claims, switch: Switch) -> None:
    """Hook the layers of all claims at the wiring and the error site."""
    errors, wirings = claims_at(claims, "error"), claims_at(claims, "wiring")
    for group in dict.fromkeys([*errors, *wirings]):
        hook = LayerHook(group.parameter, errors.get(group, []), wirings.get(group, []), switch)
        for layer in dict.fromkeys(group.layers):  # a shared module is listed at each of its paths
            layer.register_forward_hook(hook)


def mark_layers(claims: Claims, owner: Owner) -> None:
    """Mark the layers of all claims as taken."""
    names: dict[nn.Module, list[str]] = {}
    for group, claim in claims:
        for layer in dict.fromkeys(group.layers):
            names.setdefault(layer, []).append(type(claim.mechanism).__name__)
    for layer, own in names.items():
        setattr(layer, MARK, Mark(", ".join(own), owner))


def clear_layer(layer: nn.Module) -> None:
    """Take the mark and the hook off a layer."""
    for key in [k for k, hook in layer._forward_hooks.items() if isinstance(hook, LayerHook)]:
        del layer._forward_hooks[key]
    layer.__dict__.pop(MARK, None)
