"""One error on its way down through one layer, and what it would be by another way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

from bouton.layer_types import Layout
from bouton.tensors.shards import whole

if TYPE_CHECKING:
    from bouton.synapse import SynapseGroup

_TRANSPOSED: dict[type[nn.Module], Any] = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}
# the derivative alone; that of a function takes the function's own time, too
_BACKWARD: dict[type[nn.Module], Any] = {
    nn.Conv1d: conv1d_input,
    nn.Conv2d: conv2d_input,
    nn.Conv3d: conv3d_input,
}


@dataclass
class Passage:
    """What a backward wiring rule sees.

    Attributes:
        error: the error at the layer's output.
        output_errors: the errors at the read-out's output that came since this layer had its last one, or
            the latest where none came since; empty where the read-out is none of the layers. Of several
            read-outs, each has its own error, and other layers have that of the first.
        shape: the shape of the layer's input.
        layer: the layer.
        layout: how its weight maps to ``[node, fan-in...]``.
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
        own, backward = cast(Any, self.layer), _BACKWARD.get(type(self.layer))
        whole_batch = len(self.shape) == 1 - self.layout.output_axis
        if backward and whole_batch and own.padding_mode == "zeros" and own.padding != "same":
            padding = 0 if own.padding == "valid" else own.padding
            more = own.stride, padding, own.dilation, own.groups
            return cast(Tensor, backward(self.shape, weight, self.error, *more))
        source = torch.zeros(self.shape, dtype=weight.dtype, device=weight.device)

        def forward(source: Tensor) -> Tensor:
            return linear_map(self.layer, self.layout, source, weight, self.error.shape)

        if torch.compiler.is_compiling():  # which knows no torch.autograd.grad in a backward pass
            return cast(Tensor, torch.func.vjp(forward, source)[1](self.error)[0])
        again = torch.is_grad_enabled()  # a backward pass that is to be differentiated, too
        with torch.enable_grad():
            output = forward(source.requires_grad_())
        return torch.autograd.grad(output, source, self.error, create_graph=again)[0]


def linear_map(
    layer: nn.Module, layout: Layout, source: Tensor, weight: Tensor, shape: torch.Size | None = None
) -> Tensor:
    """What the layer makes of ``source`` without its bias and with ``weight``, ``[node, fan-in...]``.

    ``shape`` is that of its output, which a transposed convolution may have been asked for in the call.
    """
    if weight.ndim == 2:
        return F.linear(source, weight)
    leading = source.shape[: layout.output_axis]
    if len(leading) > 1:  # time and batch, which such layers flatten on their own
        flat = linear_map(layer, layout, source.flatten(0, len(leading) - 1), weight, shape)
        return cast(Tensor, flat.unflatten(0, leading))
    stored, own = layout.nodes(weight), cast(Any, layer)
    for kind, function in _TRANSPOSED.items():
        if isinstance(layer, kind):
            size = None if shape is None else shape[layout.output_axis + 1 :]
            kernel = own.stride, own.padding, own.kernel_size, len(own.kernel_size), own.dilation
            more = own._output_padding(source, size, *kernel), own.groups, own.dilation
            return cast(Tensor, function(source, stored, None, own.stride, own.padding, *more))
    return cast(Tensor, own._conv_forward(source, stored, None))


def alignment_angle(group: SynapseGroup, error: Tensor, sent: Tensor) -> float:
    """Angle in degrees between what was sent down and what the layer's own weights would send.

    It is taken sample by sample, as the mean over those where it is defined: where both errors are finite,
    and neither is 0. Not a number where there is no such sample.
    """
    passage = Passage(error, [], sent.shape, group.layers[0], group.layout)
    own = passage.through(group.layout.nodes(whole(group.effective())))
    samples = len(error) if error.ndim > -group.layout.output_axis else 1  # or no batch axis
    # in double precision, for a cosine of errors as small as those of a trained net
    own, sent = own.double().reshape(samples, -1), sent.double().reshape(samples, -1)
    norms = own.norm(dim=1), sent.norm(dim=1)
    cosine = (own * sent).sum(1) / norms[0] / norms[1]
    return float(cosine[cosine.isfinite()].clamp(-1, 1).acos().rad2deg().mean())
