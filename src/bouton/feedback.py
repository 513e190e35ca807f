"""The backward half of the wiring site: by which way an error travels down through a layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from bouton.layer_types import Layout
from bouton.stored import read_weight

if TYPE_CHECKING:
    from bouton.claim import Claim
    from bouton.layer import Switch
    from bouton.synapse import SynapseGroup

_NOT_RELAYED = (
    "kind='ifa' passes errors forward from layer to layer, and {} does not follow the layer that ran "
    "before it; use kind='fa' or 'dfa'"
)
SAMPLES = 32  # of each batch are kept to tell how feedback and back-propagation are aligned
_TRANSPOSED: dict[type[nn.Module], Any] = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}


@dataclass
class Passage:
    """One error on its way down through one layer: what a backward wiring rule sees.

    Attributes:
        error: the error at the layer's output.
        output_errors: the errors at the read-out's output that came since this layer had its last one, or
            the latest where none came since; empty where the read-out is none of the layers. Of several
            read-outs, each has its own error, and other layers have that of the first.
        shape: the shape of the layer's input.
    """

    error: Tensor
    output_errors: Sequence[Tensor]
    shape: torch.Size
    layer: nn.Module
    layout: Layout

    def through(self, weight: Tensor) -> Tensor:
        """The error at the layer's input, if it travels through ``weight``, ``[node, fan-in...]``."""
        weight = weight.to(self.error.dtype)  # autocast runs layers in another
        if weight.ndim == 2:
            return self.error @ weight
        source = torch.zeros(self.shape, dtype=weight.dtype, device=weight.device, requires_grad=True)
        with torch.enable_grad():
            output = linear_map(self.layer, self.layout, source, weight)
        return torch.autograd.grad(output, source, self.error)[0]


def linear_map(layer: Any, layout: Layout, source: Tensor, weight: Tensor) -> Tensor:
    """What the layer makes of ``source`` without its bias and with ``weight``, ``[node, fan-in...]``."""
    if weight.ndim == 2:
        return F.linear(source, weight)
    leading = source.shape[: layout.output_axis]
    if len(leading) > 1:  # time and batch, which such layers flatten on their own
        flat = linear_map(layer, layout, source.flatten(0, len(leading) - 1), weight)
        return cast(Tensor, flat.unflatten(0, leading))
    stored = layout.nodes(weight)
    for kind, function in _TRANSPOSED.items():
        if isinstance(layer, kind):
            stride, padding, groups = layer.stride, layer.padding, layer.groups
            more = layer.output_padding, groups, layer.dilation
            return cast(Tensor, function(source, stored, None, stride, padding, *more))
    return cast(Tensor, layer._conv_forward(source, stored, None))


@dataclass
class Pass:
    """What the layers of one attachment share of a forward and backward pass; nothing of it is kept."""

    errors: list[Tensor] = field(default_factory=list)  # at the read-out, of this backward pass
    earlier: int = 0  # errors of passes before
    calls: list[_Call] = field(default_factory=list)  # relay: the layers of this forward pass, in order
    relayed: dict[int, Tensor] = field(default_factory=dict)  # relay: errors yet to be sent, by layer

    def __reduce__(self) -> tuple[type[Pass], tuple[()]]:
        return (Pass, ())

    def begin(self) -> None:
        """A read-out runs: errors there are of another pass."""
        self.earlier += len(self.errors)
        self.errors = []

    def since(self, seen: int) -> list[Tensor]:
        """The errors after the first ``seen``, or the latest where there is none."""
        return self.errors[max(seen - self.earlier, 0) :] or self.errors[-1:]


@dataclass
class Gate:
    """Cuts back-propagation through one layer, and sends an error of a rule's making down instead.

    The layer is given its input without its past, so that autograd sends nothing down; :class:`_Send` ties
    the output to the input again.
    """

    claim: Claim
    parameter: str
    readout: bool
    leads: bool  # the read-out whose error the other layers get
    shared: Pass
    switch: Switch
    source: Tensor | None = None  # the input with its past, while the layer runs
    seen: int = 0  # errors of the read-out when this layer last had its own

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "source": None, "seen": 0}

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The layer's inputs without their past; run by torch before the layer's forward."""
        if not self.switch.on:
            return inputs
        if not inputs or not isinstance(inputs[0], Tensor):
            raise ValueError(
                f"{type(self.claim.mechanism).__name__} needs the input of {self.claim.name} as its first "
                "positional argument: call layer(x) instead of layer(input=x)"
            )
        self.source = inputs[0]
        return (self.source.detach(), *inputs[1:])

    def join(self, layer: nn.Module, output: Tensor) -> Tensor:
        """The layer's output, tied to the input whose past was cut off."""
        source, self.source = cast(Tensor, self.source), None
        if not output.requires_grad and not (source.requires_grad and torch.is_grad_enabled()):
            return output
        if self.leads:
            self.shared.begin()
        call = _Call(self, layer, source.shape, [])
        if source.requires_grad:
            # an in-place change of a view would lose the way that is made here
            output = output.clone() if output._is_view() else output
            output = _Send.apply(output, source, call)  # type: ignore[no-untyped-call]
        if self.claim.mechanism.relays:
            self._enlist(call, output, source)
        return output

    def _enlist(self, call: _Call, output: Tensor, source: Tensor) -> None:
        calls = self.shared.calls
        if any(other.gate is self for other in calls):
            self.shared.calls = []
            raise ValueError(
                f"{self.claim.name} is called twice in one forward pass, or the last one ended before the "
                "read-out: an error that is passed forward needs each layer once; use kind='fa' or 'dfa'"
            )
        # The edges of now: an in-place activation makes another tensor of the output.
        call.output_edge = get_gradient_edge(output)
        call.source_edge = get_gradient_edge(source) if source.requires_grad else None
        calls.append(call)
        if self.readout:
            self.shared.calls, call.path = [], calls


@dataclass
class _Call:
    """One call of one layer."""

    gate: Gate
    layer: nn.Module
    shape: torch.Size
    path: list[_Call]  # relay, read-out: all calls up to this one
    output_edge: GradientEdge | None = None
    source_edge: GradientEdge | None = None

    def send(self, error: Tensor) -> Tensor:
        """The error for the layer's input."""
        gate, shared = self.gate, self.gate.shared
        claim = gate.claim
        if gate.leads:
            shared.errors.append(error)
        if claim.mechanism.relays:
            if gate.readout:
                _relay(self.path, shared)
            if id(gate) not in shared.relayed:
                raise ValueError(_NOT_RELAYED.format(claim.name))
            sent = shared.relayed.pop(id(gate))
        else:
            sent = self.made_by_rule(error)
        gate.seen = shared.earlier + len(shared.errors)
        unbatched = error.ndim == -claim.layout.output_axis
        some = slice(None) if unbatched else slice(SAMPLES)
        claim.sample = (error[some].clone(), sent[some].clone())
        return sent

    def made_by_rule(self, error: Tensor) -> Tensor:
        """The error that the rule sends."""
        gate, claim = self.gate, self.gate.claim
        output_errors = [error] if gate.readout else gate.shared.since(gate.seen)
        passage = Passage(error, output_errors, self.shape, self.layer, claim.layout)
        return claim.send(read_weight(self.layer, gate.parameter), passage)


def alignment_angle(group: SynapseGroup, error: Tensor, sent: Tensor) -> float:
    """Angle in degrees between what was sent down and what the layer's own weights would send.

    It is taken sample by sample, as the mean over those where it is defined.
    """
    passage = Passage(error, [], sent.shape, group.layers[0], group.layout)
    own = passage.through(group.layout.nodes(group.effective()))
    samples = len(error) if error.ndim > -group.layout.output_axis else 1  # or no batch axis
    own, sent = own.reshape(samples, -1), sent.reshape(samples, -1)
    cosine = F.cosine_similarity(own, sent).clamp(-1, 1)
    defined = own.any(1) & sent.any(1)
    return cosine[defined].acos().rad2deg().mean().item()


class _Send(torch.autograd.Function):
    """Hands the output on as it is; backward, the input gets what the call sends."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, source: Tensor, call: _Call) -> Tensor:
        ctx.call = call
        ctx.mark_dirty(output)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, Tensor, None]:
        return error, ctx.call.send(error), None


def _relay(path: list[_Call], shared: Pass) -> None:
    """Feed the error to the first layer's output, and pass it forward through the weights of the others."""
    errors: list[Tensor] = []
    for before, call in itertools.pairwise(path):
        if not errors:
            sent = call.made_by_rule(shared.errors[-1])
        else:
            layout = before.gate.claim.layout
            weight = layout.nodes(read_weight(before.layer, before.gate.parameter)).to(errors[-1].dtype)
            sent = linear_map(before.layer, layout, errors[-1], weight)
        sent = _reshaped(sent, call)
        shared.relayed[id(call.gate)] = sent
        if call is not path[-1]:
            # through the derivative of whatever lies between the two layers; an activation's is diagonal
            edges = cast(GradientEdge, call.source_edge), cast(GradientEdge, before.output_edge)
            (error,) = torch.autograd.grad(*edges, sent, retain_graph=True, allow_unused=True)
            if error is None:
                raise ValueError(_NOT_RELAYED.format(call.gate.claim.name))
            errors.append(_reshaped(error, call))


def _reshaped(error: Tensor, call: _Call) -> Tensor:
    if error.numel() != call.shape.numel():
        raise ValueError(
            f"kind='ifa' passes errors forward, and {tuple(error.shape)} does not fit the input "
            f"{tuple(call.shape)} of {call.gate.claim.name}: what lies before it changes the size, as "
            "pooling does; use kind='fa' or 'dfa'"
        )
    return error.reshape(call.shape)
