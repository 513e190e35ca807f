"""The backward half of the wiring site: by which way an error travels down through a layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from bouton.claim import Claim
from bouton.compiled import Unscripted, forward_only
from bouton.passage import Passage, linear_map
from bouton.passes.feedback_graph import SendInGraph
from bouton.passes.modulation import refuse_forward_mode, transforming
from bouton.stored import read_weight
from bouton.switch import Switch

# Of each batch so many samples are kept, to tell how feedback and back-propagation are aligned, and at most
# so many numbers of each error: that of a language model's read-out has millions for one sample.
SAMPLES, SAMPLE_SIZE = 32, 2**20
_TWICE = (
    "{} is called twice in one forward pass, or the last one ended before the read-out: an error that is "
    "passed forward needs each layer once; use kind='fa' or 'dfa'"
)
_NOT_RELAYED = (
    "kind='ifa' passes errors from the first layer forward, layer by layer, to one read-out, and so has "
    "none for the input of {}; use kind='fa' or 'dfa', and checkpoint with use_reentrant=False"
)
_CHANGED = (
    "a forward pre-hook that was registered after bouton.attach changes the input of {}, and would have no "
    "part in its derivative; register it before"
)
_RESIZED = (
    "kind='ifa' passes errors forward, and {} does not fit the input {} of {}: what lies before it changes "
    "the size, as pooling does; use kind='fa' or 'dfa'"
)


_TRANSFORMED = (
    "{} keeps errors from one layer to the next, which the transforms of torch.func (grad, vmap, ...) do "
    "not allow; use loss.backward() or torch.autograd.grad, or handle.paused()"
)


@dataclass
class Pass:
    """What the layers of one attachment share of a forward and backward pass; no copy takes it along."""

    errors: list[Tensor] = field(default_factory=list)  # at the read-out, of this backward pass
    earlier: int = 0  # errors of passes before
    path: list[_Stage] = field(default_factory=list)  # relay: the layers of this forward pass, in order

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
class Gate(Unscripted):
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
    given: Tensor | None = None  # the input without it
    seen: int = 0  # errors of the read-out when this layer last had its own

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "source": None, "given": None, "seen": 0}

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The layer's inputs without their past; run by torch before the layer's forward."""
        if not self.switch.on or forward_only():
            return inputs
        if not inputs or not isinstance(inputs[0], Tensor):
            raise ValueError(
                f"{type(self.claim.mechanism).__name__} needs the input of {self.claim.name} as its first "
                "positional argument: call layer(x) instead of layer(input=x)"
            )
        if transforming():
            raise ValueError(_TRANSFORMED.format(self.claim.key))
        refuse_forward_mode(inputs[0], self.claim.key)
        self.source = inputs[0]
        self.given = self.source.detach()
        return (self.given, *inputs[1:])

    def join(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """The layer's output, tied to the input whose past was cut off."""
        source, given = cast(Tensor, self.source), self.given
        self.source = self.given = None
        if not inputs or inputs[0] is not given:
            raise ValueError(_CHANGED.format(self.claim.name))
        if torch.compiler.is_compiling():
            if not source.requires_grad:
                return output
            rule = self.claim, layer, self.parameter, self.readout
            return cast(Tensor, SendInGraph.apply(output, source, *rule))  # type: ignore[no-untyped-call]
        recomputed = _in_backward()  # by activation checkpointing, for a pass that has begun
        if self.leads and not recomputed:
            self.shared.begin()
        if not output.requires_grad and not (source.requires_grad and torch.is_grad_enabled()):
            return output
        call = _Call(self, layer, source.shape)
        if source.requires_grad:
            output = _Send.apply(output, source, call)  # type: ignore[no-untyped-call]
        if self.claim.mechanism.relays and not recomputed:
            self._enlist(call, output, source)
        return output

    def _enlist(self, call: _Call, output: Tensor, source: Tensor) -> None:
        path = self.shared.path
        if any(stage.call.gate is self for stage in path):
            self.shared.path = []
            raise ValueError(_TWICE.format(self.claim.name))
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
        gate, claim = self.gate, self.gate.claim
        if not gate.switch.on:  # since the forward pass
            return self._passage(error).through(read_weight(self.layer, gate.parameter))
        if gate.leads:
            gate.shared.errors.append(error)
        sent = self._relayed(error) if claim.mechanism.relays else self.made_by_rule(error)
        gate.seen = gate.shared.earlier + len(gate.shared.errors)
        claim.sample = self._sample(error, sent)
        return sent

    def _sample(self, error: Tensor, sent: Tensor) -> tuple[Tensor, Tensor] | None:
        """Copies of some samples of both errors, as many as are small; None where one is large."""
        size = max(error.numel(), sent.numel(), 1)
        if error.ndim == -self.gate.claim.layout.output_axis:  # no batch axis
            return (error.clone(), sent.clone()) if size <= SAMPLE_SIZE else None
        count = min(SAMPLES, SAMPLE_SIZE * len(error) // size)
        return (error[:count].clone(), sent[:count].clone()) if count else None

    def made_by_rule(self, error: Tensor) -> Tensor:
        """The error that the rule sends."""
        return self.gate.claim.send(read_weight(self.layer, self.gate.parameter), self._passage(error))

    def _passage(self, error: Tensor) -> Passage:
        gate = self.gate
        output_errors = [error] if gate.readout else gate.shared.since(gate.seen)
        return Passage(error, output_errors, self.shape, self.layer, gate.claim.layout)

    def _relayed(self, error: Tensor) -> Tensor:
        if self.gate.readout:
            _relay(self, error)
        sent, self.relayed = self.relayed, None
        if sent is None:
            raise ValueError(_NOT_RELAYED.format(self.gate.claim.name))
        return sent


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1  # as torch.utils.checkpoint asks


class _Stage(NamedTuple):
    """A call on the way of a relayed error, and the way to its output."""

    call: _Call
    output_edge: GradientEdge


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


def _relay(readout: _Call, output_error: Tensor) -> None:
    """Feed the error to the first layer's output, and pass it forward through the weights of the others."""
    error: Tensor | None = None
    calls = [*(stage.call for stage in readout.path), readout]
    for (before, output_edge), call in zip(readout.path, calls[1:], strict=True):
        if error is None:
            sent = call.made_by_rule(output_error)
        else:
            layout = before.gate.claim.layout
            weight = layout.nodes(read_weight(before.layer, before.gate.parameter)).to(error.dtype)
            sent = linear_map(before.layer, layout, error, weight)
        call.relayed = sent = _reshaped(sent, call)
        if call is not readout:
            # through the derivative of whatever lies between the two layers; an activation's is diagonal
            edge = cast(GradientEdge, call.source_edge)
            (error,) = torch.autograd.grad(edge, output_edge, sent, retain_graph=True, allow_unused=True)
            if error is None:
                raise ValueError(_NOT_RELAYED.format(call.gate.claim.name))
            error = _reshaped(error, call)


def _reshaped(error: Tensor, call: _Call) -> Tensor:
    if error.numel() != call.shape.numel():
        raise ValueError(_RESIZED.format(tuple(error.shape), tuple(call.shape), call.gate.claim.name))
    return error.reshape(call.shape)
