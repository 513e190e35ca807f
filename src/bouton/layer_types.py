"""Which layer types have weights that mechanisms can act on, and how each is to be seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from bouton.stored import stored_name, stored_parameter

_ELSE = "only what acts on the weight alone reaches it"
_NOT_CALLED = f"torch reads this weight without calling the layer, so that no hook sees its output; {_ELSE}"
_PACKED = f"attention computes these nodes inside one function, where no hook can see them; {_ELSE}"
_FUSED = f"a fused recurrent layer computes its nodes where no hook can see them; {_ELSE}"
_LOOKUP = "an embedding looks rows up: no node sums over synapses"
_CELL = "the cell hands out what its nodes make after their nonlinearity, and not their sums"
_REFUSED_OF_EMBEDDINGS = {
    "sparse": "sparse=True gives gradients that hold only some rows; use sparse=False",
    "max_norm": "max_norm= rescales rows in the forward pass, where no mechanism acts; leave it out",
}


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

    @property
    def views(self) -> bool:
        """Whether what :meth:`nodes` and :meth:`split` give are views, so that it can be set."""
        return self.transposed <= 1

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """See a weight-shaped tensor as its blocks, each ``[node, fan-in...]``."""
        nodes = self.nodes(tensor) if self.transposed else tensor
        return (nodes,) if self.blocks == 1 else nodes.tensor_split(self.blocks)

    def join(self, blocks: list[Tensor]) -> Tensor:
        """The inverse of :meth:`split`."""
        return self.nodes(blocks[0] if len(blocks) == 1 else torch.cat(blocks))

    def whole(self, tensor: Tensor) -> tuple[Tensor]:
        """See a weight-shaped tensor by the nodes of the layer's output, each with all of its blocks."""
        nodes = self.nodes(tensor) if self.transposed else tensor
        return (nodes if self.blocks == 1 else nodes.unflatten(0, (self.blocks, -1)).transpose(0, 1),)


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
    for option, reason in _REFUSED_OF_EMBEDDINGS.items():
        if getattr(layer, option):
            unreachable |= {"rate": reason, "structure": reason}
    return [Slot(unreachable=unreachable, lookup=True)]


def _recurrent(gates: int, layer: Any) -> list[Slot]:
    found = []
    # not the names of its parameters, which are others where a weight is pruned or computed
    for name in [name for name in layer._flat_weights_names if name.startswith("weight_")]:
        swap = {"ih": "hh", "hh": "ih"}.get(name[7:9])  # weight_ih_l0_reverse, weight_hh_l0, weight_hr_l0
        companions = (f"weight_{swap}{name[9:]}",) if swap else ()
        found.append(Slot(name, Layout(blocks=gates if swap else 1), _no_output(_FUSED), companions))
    return found


def _cell(gates: int, layer: Any) -> list[Slot]:
    once = "the error at these nodes is modulated once, for weight_ih, by the share of both weights"
    layout = Layout(blocks=gates)
    inputs = stored_parameter(layer, stored_name(layer, "weight_ih"))
    learns = inputs is not None and inputs.requires_grad
    return [
        Slot("weight_ih", layout, {"wiring": _CELL}, ("weight_hh",)),
        Slot("weight_hh", layout, {"wiring": _CELL} | ({"error": once} if learns else {}), ("weight_ih",)),
    ]


def _is_transposed_linear(layer: nn.Module) -> bool:
    """Whether this is the layer that GPT-2's code calls Conv1D: a Linear that stores ``[in, node]``."""
    # a parametrised one is a subclass
    if not any(kind.__name__ == "Conv1D" for kind in type(layer).__mro__):
        return False
    weight = stored_parameter(layer, stored_name(layer, "weight"))
    return weight is not None and weight.shape[1:] == (getattr(layer, "nf", None),)


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
    nn.RNN: partial(_recurrent, 1),
    nn.LSTM: partial(_recurrent, 4),
    nn.GRU: partial(_recurrent, 3),
    nn.RNNCell: partial(_cell, 1),
    nn.LSTMCell: partial(_cell, 4),
    nn.GRUCell: partial(_cell, 3),
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding,
}
