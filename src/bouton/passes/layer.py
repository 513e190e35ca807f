"""What sits on a layer: a mark, and the forward hook that serves the wiring and the error site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bouton.claim import Claim, Claims, claims_at
from bouton.compiled import Unscripted, forward_only, tell_hooked, tell_plain
from bouton.passes.direct import gate_for
from bouton.passes.feedback import Gate, Pass
from bouton.passes.merging import Merge, merge_for, show_parameters
from bouton.passes.modulation import awaits_error, modulate, transforming
from bouton.passes.ragged import each_sample, samples
from bouton.stored import read_weight, stored_parameter
from bouton.switch import Switch

MARK = "_bouton"  # the attribute under which a layer bears its mark
_UNSEEN = (
    "{} counts a layer's outputs, which torch.func's transforms (grad, vmap, ...) hide; put the model into "
    "evaluation mode, or use loss.backward()"
)
_REPLACED = (
    "{} scales the gradient of the parameter, and another tensor stands in for it in this forward pass, as "
    "by torch.func.functional_call: its gradient would be plain. Use scope='update' where there is one, or "
    "torch.no_grad() if no gradient is needed, or handle.paused(). With fully_shard, call bouton.attach "
    "after it, and on the whole model"
)


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


@dataclass
class LayerHook(Unscripted):
    """Forward hook of one layer: shows its output, modulates the error there, then transforms the output.

    The error is modulated at the raw output, before any wiring, because that is where it is the error of
    the node. A hook on the output works with in-place activations and fires once under checkpointing,
    which a full backward hook on the module does not.
    """

    parameter: str
    companions: tuple[str, ...]
    switch: Switch
    observers: list[Claim]
    gates: list[Gate]
    errors: list[Claim]
    wirings: list[Claim]
    merge: Merge | None = None  # of the layer's weights, where a wiring rule allows for it

    def __call__(self, module: nn.Module, inputs: tuple[object, ...], returned: Any) -> Any:
        """Run by torch after the layer's forward."""
        if not self.switch.on:
            return returned
        if self.merge is not None:
            joined = self.merge.join(module, returned)
            if joined is not None:
                return joined
        # An LSTM's cell also returns its memory, which is no output of the node to others.
        output = returned[0] if isinstance(returned, tuple) else returned
        # asked only where it matters, as all that comes in every forward pass
        learns = bool(self.observers or self.gates or self.errors) and not forward_only()
        if self.observers and module.training and learns:
            weight = read_weight(module, self.parameter)
            for claim in self.observers:
                if transforming():
                    raise ValueError(_UNSEEN.format(claim.key))
                for sample in samples(output) if output.is_nested else (output,):
                    claim.observe(weight, sample)
        for gate in self.gates if learns else ():
            returned = output = gate.join(module, inputs, output)
        if self.errors and learns and awaits_error(output, self.errors[0].key):
            weight = read_weight(module, self.parameter)
            names = self.companions
            companions = [read_weight(module, name) for name in names] if names else ()
            for claim in self.errors:
                factor = claim.error_factor(weight, companions).to(output.dtype)
                output = modulate(output, factor, self.switch, claim.key)
            returned = (output, *returned[1:]) if isinstance(returned, tuple) else output
        if not self.wirings:
            return returned
        weight = read_weight(module, self.parameter)
        for claim in self.wirings:
            if output.is_nested:
                output = each_sample(partial(claim.transform, weight), output)
            else:
                output = claim.transform(weight, output)
        return output


@dataclass
class Guard:
    """Forward pre-hook where gradients are scaled: at the parameter, and at no stand-in for it."""

    source: Tensor  # whose gradient is scaled
    stored: str
    name: str
    switch: Switch

    def __call__(self, module: nn.Module, inputs: tuple[object, ...]) -> None:
        """Refuse a forward pass that another tensor takes part in, if that one would get a gradient.

        Raises:
            ValueError: it would.
        """
        held = stored_parameter(module, self.stored)
        if held is None or held is self.source or not self.switch.on or not torch.is_grad_enabled():
            return
        if held.requires_grad or transforming():
            raise ValueError(_REPLACED.format(self.name))


def hook_layers(claims: Claims, switch: Switch, sources: Mapping[nn.Parameter, Tensor]) -> None:
    """Hook the layers of all claims that need a layer's output."""
    shared = Pass()
    direct = [group for group, claim in claims if claim.mechanism.direct]
    leader = next((group for group in direct if group.readout), None)
    for group, claims_of_group in claims_at(claims, "rate", scope="gradient").items():
        source = sources.get(group.weight, group.weight)
        guard = Guard(source, group.stored, claims_of_group[0].key, switch)
        for layer in dict.fromkeys(group.layers):
            layer.register_forward_pre_hook(guard)
            tell_hooked(layer)
    for group in dict.fromkeys(group for group, _ in claims):
        own = [claim for other, claim in claims if other is group]
        observers = [claim for claim in own if claim.mechanism.observes]
        errors = [claim for claim in own if claim.mechanism.site == "error"]
        wirings = [claim for claim in own if claim.mechanism.site == "wiring"]
        forward = [claim for claim in wirings if claim.mechanism.direction == "forward"]
        gates = [
            gate_for(claim, group.parameter, group.readout, group is leader, shared, switch)
            for claim in wirings
            if claim.mechanism.direction == "backward"
        ]
        if observers or errors or wirings:
            merge = None if observers or gates else merge_for(wirings, errors, group, switch)
            hook = LayerHook(
                group.parameter, group.companions, switch, observers, gates, errors, forward, merge
            )
            own_before: list[Gate | Merge] = [*gates, *([merge] if merge else [])]
            for layer in dict.fromkeys(group.layers):  # a shared module is listed at each of its paths
                for before in own_before:
                    layer.register_forward_pre_hook(before)
                # before hooks of others, which may return another output than the node's
                layer.register_forward_hook(hook, prepend=True)
                tell_hooked(layer)


def mark_layers(claims: Claims, owner: Owner) -> None:
    """Mark the layers of all claims as taken."""
    names: dict[nn.Module, list[str]] = {}
    for group, claim in claims:
        for layer in group.layers:
            names.setdefault(layer, []).append(type(claim.mechanism).__name__)
    for layer, own in names.items():
        setattr(layer, MARK, Mark(", ".join(dict.fromkeys(own)), owner))


def clear_layer(layer: nn.Module) -> None:
    """Take the mark and the hooks off a layer."""
    for hooks in (layer._forward_pre_hooks, layer._forward_hooks):
        for key in [
            key for key, hook in hooks.items() if isinstance(hook, Gate | Guard | LayerHook | Merge)
        ]:
            del hooks[key]
    show_parameters(layer)
    tell_plain(layer)
    layer.__dict__.pop(MARK, None)
