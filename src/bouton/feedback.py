"""The backward half of the wiring site: by which way an error travels down through a layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

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
        output_error: the error at the output of the read-out.
        shape: the shape of the layer's input.
    """

    error: Tensor
    output_error: Tensor
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
            output = linear_map(self.layer, self.layout, source, weight, self.error.shape)
        return torch.autograd.grad(output, source, self.error)[0]


def linear_map(
    layer: nn.Module, layout: Layout, source: Tensor, weight: Tensor, shape: torch.Size | None = None
) -> Tensor:
    """What the layer makes of ``source`` without its bias and with ``weight``, ``[node, fan-in...]``.

    ``shape`` is that of its output, which a transposed convolution may have been asked for in the call.
    """
    if weight.ndim == 2:
        return F.linear(source, weight)
    stored, own = layout.nodes(weight), cast(Any, layer)
    for kind, function in _TRANSPOSED.items():
        if isinstance(layer, kind):
            size = None if shape is None else shape[layout.output_axis + 1 :]
            kernel = own.stride, own.padding, own.kernel_size, len(own.kernel_size), own.dilation
            more = own._output_padding(source, size, *kernel), own.groups, own.dilation
            return cast(Tensor, function(source, stored, None, own.stride, own.padding, *more))
    return cast(Tensor, own._conv_forward(source, stored, None))


@dataclass
class Pass:
    """What the layers of one attachment share of a forward and backward pass; no copy takes it along."""

    output_error: Tensor | None = None
    path: list[_Stage] = field(default_factory=list)  # relay: the layers of this forward pass, in order

    def __reduce__(self) -> tuple[type[Pass], tuple[()]]:
        return (Pass, ())


@dataclass
class Gate:
    """Cuts back-propagation through one layer, and sends an error of a rule's making down instead.

    The layer is given its input without its past, so that autograd sends nothing down; :class:`_Send` ties
    the output to the input again.
    """

    claim: Claim
    parameter: str
    readout: bool
    shared: Pass
    switch: Switch
    source: Tensor | None = None  # the input with its past, while the layer runs

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "source": None}

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
        call = _Call(self, layer, source.shape)
        if source.requires_grad:
            # an in-place change of a view would lose the way that is made here
            output = output.clone() if output._is_view() else output
            output = _Send.apply(output, source, call)  # type: ignore[no-untyped-call]
        if self.claim.mechanism.relays:
            self._enlist(call, output, source)
        return output

    def _enlist(self, call: _Call, output: Tensor, source: Tensor) -> None:
        path = self.shared.path
        if any(stage.call.gate is self for stage in path):
            self.shared.path = []
            raise ValueError(
                f"{self.claim.name} is called twice in one forward pass, or the last one ended before the "
                "read-out: an error that is passed forward needs each layer once; use kind='fa' or 'dfa'"
            )
        # The edges of now: an in-place activation makes another tensor of the output.
        call.source_edge = get_gradient_edge(source) if source.requires_grad else None
        if self.readout:
            self.shared.path, call.path = [], path
        else:
            path.append(_Stage(call, get_gradient_edge(output)))


@dataclass
class _Call:
    """One call of one layer; its node of the graph holds it, so that it must hold nothing from there up."""

    gate: Gate
    layer: nn.Module
    shape: torch.Size
    source_edge: GradientEdge | None = None
    path: list[_Stage] = field(default_factory=list)  # relay, read-out: all layers before this one
    relayed: Tensor | None = None  # relay: the error yet to be sent

    def send(self, error: Tensor) -> Tensor:
        """The error for the layer's input."""
        gate, shared = self.gate, self.gate.shared
        claim = gate.claim
        if not gate.switch.on:  # since the forward pass
            return self._passage(error).through(read_weight(self.layer, gate.parameter))
        if gate.readout:
            shared.output_error = error
        if shared.output_error is None:
            raise ValueError(
                f"{type(claim.mechanism).__name__} had no error of the read-out when it reached "
                f"{claim.name}; let where= take the read-out too, or name with readout= the layer whose "
                "output is the network's"
            )
        sent = self._relayed() if claim.mechanism.relays else self.made_by_rule(error)
        unbatched = error.ndim == -claim.layout.output_axis
        some = slice(None) if unbatched else slice(SAMPLES)
        claim.sample = (error[some].clone(), sent[some].clone())
        return sent

    def _relayed(self) -> Tensor:
        if self.gate.readout:
            _relay(self)
        sent, self.relayed = self.relayed, None
        if sent is None:
            raise ValueError(
                f"kind='ifa' passes errors from the first layer forward to one read-out, and so has none "
                f"for the input of {self.gate.claim.name}: it is the first layer and its input takes a "
                "gradient, or the loss is not one of that read-out; use kind='fa' or 'dfa'"
            )
        return sent

    def made_by_rule(self, error: Tensor) -> Tensor:
        """The error that the rule sends."""
        return self.gate.claim.send(read_weight(self.layer, self.gate.parameter), self._passage(error))

    def _passage(self, error: Tensor) -> Passage:
        output_error = cast(Tensor, self.gate.shared.output_error)
        return Passage(error, output_error, self.shape, self.layer, self.gate.claim.layout)


class _Stage(NamedTuple):
    """A call on the way of a relayed error, and the way to its output."""

    call: _Call
    output_edge: GradientEdge


def alignment_angle(group: SynapseGroup, error: Tensor, sent: Tensor) -> float:
    """Angle in degrees between what was sent down and what the layer's own weights would send.

    It is taken sample by sample, as the mean over those where it is defined.
    """
    passage = Passage(error, error, sent.shape, group.layers[0], group.layout)
    own = passage.through(group.layout.nodes(group.effective()))
    samples = len(error) if error.ndim > -group.layout.output_axis else 1  # or no batch axis
    # in double precision, for a cosine of errors as small as those of a trained net
    own, sent = own.double().reshape(samples, -1), sent.double().reshape(samples, -1)
    norms = own.norm(dim=1), sent.norm(dim=1)
    cosine = (own * sent).sum(1) / norms[0] / norms[1]
    defined = own.any(1) & sent.any(1)
    return float(cosine[defined].clamp(-1, 1).acos().rad2deg().mean())


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


def _relay(readout: _Call) -> None:
    """Feed the error to the first layer's output, and pass it forward through the weights of the others."""
    error: Tensor | None = None
    calls = [*(stage.call for stage in readout.path), readout]
    for (before, output_edge), call in zip(readout.path, calls[1:], strict=True):
        if error is None:
            sent = call.made_by_rule(cast(Tensor, call.gate.shared.output_error))
        else:
            layout = before.gate.claim.layout
            weight = layout.nodes(read_weight(before.layer, before.gate.parameter)).to(error.dtype)
            sent = linear_map(before.layer, layout, error, weight)
        call.relayed = sent = _reshaped(sent, call)
        if call is not readout:
            # through the derivative of whatever lies between the two layers; an activation's is diagonal
            edge = cast(GradientEdge, call.source_edge)
            (error,) = torch.autograd.grad(edge, output_edge, sent, retain_graph=True)
            error = _reshaped(error, call)


def _reshaped(error: Tensor, call: _Call) -> Tensor:
    if error.numel() != call.shape.numel():
        raise ValueError(
            f"kind='ifa' passes errors forward, and {tuple(error.shape)} does not fit the input "
            f"{tuple(call.shape)} of {call.gate.claim.name}: what lies before it changes the size, as "
            "pooling does; use kind='fa' or 'dfa'"
        )
    return error.reshape(call.shape)
