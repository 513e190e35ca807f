"""Which layer types have weights that mechanisms can act on, and how each is to be seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

_ELSE = "only the rate and the structure site reach it"
_NOT_CALLED = f"torch reads this weight without calling the layer, so that no hook sees its output; {_ELSE}"
_PACKED = f"attention computes these nodes inside one function, where no hook can see them; {_ELSE}"
_FUSED = f"a fused recurrent layer computes its nodes where no hook can see them; {_ELSE}"
_LOOKUP = "an embedding looks rows up: no node sums over synapses"
_CELL = "the cell hands out what its nodes make after their nonlinearity, and not their sums"


@dataclass(frozen=True)
class Layout:
    """How a weight tensor maps to ``[node, fan-in...]``, and where its layer's output holds the nodes.

    ``transposed`` is 0 for weights that are stored node-major (``[node, fan-in...]``), and the number
    of groups for those that are stored ``[in, node / groups, kernel...]``, as in transposed convolutions.
    ``output_axis`` counts from the end, so that it also holds for inputs without a batch axis. ``blocks``
    counts what is packed into one tensor along the nodes: query, key and value, or the gates of an LSTM.
    """

    transposed: int = 0
    output_axis: int = -1
    blocks: int = 1

    def nodes(self, tensor: Tensor) -> Tensor:
        """See a weight-shaped tensor as ``[node, fan-in...]``; its own inverse.

        A view, except for transposed weights with several groups, where it is a copy.
        """
        if not self.transposed:
            return tensor
        # [g * in/g, out/g, k...] -> [g * out/g, in/g, k...], and the same swap leads back
        blocks: Tensor = tensor.unflatten(0, (self.transposed, -1))
        return blocks.transpose(1, 2).flatten(0, 1)

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """See a weight-shaped tensor as its blocks, each ``[node, fan-in...]``."""
        return self.nodes(tensor).tensor_split(self.blocks)

    def join(self, blocks: list[Tensor]) -> Tensor:
        """The inverse of :meth:`split`."""
        return self.nodes(blocks[0] if len(blocks) == 1 else torch.cat(blocks))

    def units(self, tensor: Tensor) -> Tensor:
        """See a weight-shaped tensor by the nodes of the layer's output, each with all of its blocks."""
        nodes = self.nodes(tensor)
        return nodes if self.blocks == 1 else nodes.unflatten(0, (self.blocks, -1)).transpose(0, 1)


@dataclass(frozen=True)
class Slot:
    """One weight of a layer type.

    ``unreachable`` gives the reason for each site that cannot act on it, and for ``"observe"`` where no
    hook sees the layer's output. ``companions`` are the layer's further weights that lead into the same
    nodes. ``lookup`` marks tables whose rows are looked up.
    """

    parameter: str = "weight"
    layout: Layout = Layout()
    unreachable: Mapping[str, str] = field(default_factory=dict)
    companions: tuple[str, ...] = ()
    lookup: bool = False


def slots(layer: nn.Module) -> list[Slot]:
    """The weights of a layer that mechanisms can act on, none for unknown layer types."""
    for kind, describe in _LAYER_TYPES.items():
        if isinstance(layer, kind):
            return describe(layer)
    return [Slot(layout=Layout(transposed=1))] if _is_transposed_linear(layer) else []


def layer_types() -> list[str]:
    """The names of the known layer types."""
    return [kind.__name__ for kind in _LAYER_TYPES if kind is not NonDynamicallyQuantizableLinear]


def _no_output(reason: str) -> dict[str, str]:
    return {"wiring": reason, "error": reason, "observe": reason}


def _dense(layer: Any) -> list[Slot]:
    return [Slot()]


def _bypassed(layer: Any) -> list[Slot]:
    # nn.MultiheadAttention hands out_proj's weight to a function and never calls out_proj itself
    return [Slot(unreachable=_no_output(_NOT_CALLED))]


def _convolution(layer: Any) -> list[Slot]:
    return [Slot(layout=Layout(output_axis=-1 - len(layer.kernel_size)))]


def _transposed_convolution(layer: Any) -> list[Slot]:
    return [Slot(layout=Layout(transposed=layer.groups, output_axis=-1 - len(layer.kernel_size)))]


def _attention(layer: Any) -> list[Slot]:
    separate = [Slot(f"{name}_proj_weight", unreachable=_no_output(_PACKED)) for name in "qkv"]
    return [Slot("in_proj_weight", Layout(blocks=3), _no_output(_PACKED)), *separate]


def _embedding(layer: Any) -> list[Slot]:
    # a row for each token, as in a read-out that shares this weight
    unreachable = _no_output(_LOOKUP)
    if layer.sparse:
        reason = "sparse=True gives gradients that hold only some rows; use sparse=False"
        unreachable |= {"rate": reason, "structure": reason}
    return [Slot(unreachable=unreachable, lookup=True)]


def _recurrent(layer: Any) -> list[Slot]:
    found = []
    for name in [name for name in layer._parameters if name.startswith("weight_")]:
        swap = {"ih": "hh", "hh": "ih"}.get(name[7:9])  # weight_ih_l0_reverse, weight_hh_l0, weight_hr_l0
        gates = layer._parameters[name].shape[0] // layer.hidden_size if swap else 1
        companions = (f"weight_{swap}{name[9:]}",) if swap else ()
        found.append(Slot(name, Layout(blocks=gates), _no_output(_FUSED), companions))
    return found


def _cell(layer: Any) -> list[Slot]:
    once = "the error at these nodes is modulated once, for weight_ih, by the share of both weights"
    layout = Layout(blocks=layer.weight_hh.shape[0] // layer.hidden_size)
    return [
        Slot("weight_ih", layout, {"wiring": _CELL}, ("weight_hh",)),
        Slot("weight_hh", layout, {"wiring": _CELL, "error": once}, ("weight_ih",)),
    ]


def _is_transposed_linear(layer: nn.Module) -> bool:
    """Whether this is the layer that GPT-2's code calls Conv1D: a Linear that stores ``[in, node]``."""
    shape = getattr(layer._parameters.get("weight"), "shape", ())
    return type(layer).__name__ == "Conv1D" and shape[1:] == (getattr(layer, "nf", None),)


_LAYER_TYPES: dict[type[nn.Module], Callable[[Any], list[Slot]]] = {
    NonDynamicallyQuantizableLinear: _bypassed,
    nn.Linear: _dense,
    nn.Bilinear: _dense,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ConvTranspose1d: _transposed_convolution,
    nn.ConvTranspose2d: _transposed_convolution,
    nn.ConvTranspose3d: _transposed_convolution,
    nn.MultiheadAttention: _attention,
    nn.RNN: _recurrent,
    nn.LSTM: _recurrent,
    nn.GRU: _recurrent,
    nn.RNNCell: _cell,
    nn.LSTMCell: _cell,
    nn.GRUCell: _cell,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding,
}
