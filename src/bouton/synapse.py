"""What a synapse group is, and how to find the synapse groups of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Layout:
    """How a weight tensor maps to ``[node, fan-in...]``, and where its layer's output holds the nodes.

    ``transposed`` is 0 for weights that are stored node-major (``[node, fan-in...]``), and the number
    of groups for transposed convolutions, which store ``[in, node / groups, kernel...]``.
    ``output_axis`` counts from the end, so that it also holds for inputs without a batch axis.
    """

    transposed: int
    output_axis: int

    def nodes(self, tensor: Tensor) -> Tensor:
        """See a weight-shaped tensor as ``[node, fan-in...]``; its own inverse.

        A view, except for transposed convolutions with several groups, where it is a copy.
        """
        if not self.transposed:
            return tensor
        # [g * in/g, out/g, k...] -> [g * out/g, in/g, k...], and the same swap leads back
        blocks: Tensor = tensor.unflatten(0, (self.transposed, -1))
        return blocks.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class SynapseGroup:
    """One weight tensor of a model: the synapses that lead into the nodes of one layer.

    ``aliases`` are further paths at which the same weight (shared module or tied weight) is found, and
    ``layers`` the module at each path. ``called`` is False where torch reads the weight without ever
    calling the layer's ``forward``, so that no forward hook can reach it.
    """

    path: str
    layers: tuple[nn.Module, ...]
    layout: Layout
    aliases: tuple[str, ...] = ()
    readout: bool = False
    called: bool = True

    parameter = "weight"

    @property
    def name(self) -> str:
        """The weight's name in ``model.named_parameters()``."""
        return f"{self.path}.{self.parameter}" if self.path else self.parameter

    @property
    def weight(self) -> nn.Parameter:
        """The weight as torch holds it."""
        return cast(nn.Parameter, getattr(self.layers[0], self.parameter))

    @property
    def paths(self) -> tuple[str, ...]:
        """All paths at which the weight is found."""
        return (self.path, *self.aliases)

    @property
    def frozen(self) -> bool:
        """True where the weight takes no gradient."""
        return not self.weight.requires_grad

    @property
    def node_count(self) -> int:
        """Number of nodes: output features, or output channels."""
        return self.layout.nodes(self.weight.detach()).shape[0]


def find_groups(model: nn.Module, readout: str | Sequence[str] | None = None) -> tuple[SynapseGroup, ...]:
    """Find the synapse groups of ``model`` in registration order.

    Found are the weights of ``Linear``, ``Conv1d/2d/3d`` and ``ConvTranspose1d/2d/3d``, in arbitrarily
    nested models; shared modules and tied weights are found once, frozen weights are included.

    Args:
        model: any module.
        readout: path (or paths) of the read-out layer; by default the last group in registration
            order; ``()`` for a model without one.

    Raises:
        ValueError: a ``readout`` path that is no synapse group; a lazy module that is not yet
            materialised.

    Example:
        >>> from torch import nn
        >>> [g.name for g in find_groups(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))]
        ['0.weight', '2.weight']
    """
    found: dict[int, list[tuple[str, nn.Module]]] = {}
    seen: dict[nn.Module, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        layout = _layout(module)
        # A parametrised weight is computed at each access and is no parameter of its own.
        weight = module._parameters.get("weight") if layout else None
        if isinstance(weight, UninitializedParameter):
            raise ValueError(
                f"{path or type(module).__name__} is a lazy module without a weight yet; run one "
                "batch through the model before bouton.attach"
            )
        if weight is not None:
            found.setdefault(id(weight), []).append((path, module))
            seen.setdefault(module, path)

    if readout is None:
        chosen = list(seen.values())[-1:]
    else:
        chosen = [readout] if isinstance(readout, str) else list(readout)
    paths = [path for entries in found.values() for path, _ in entries]
    if unknown := [path for path in chosen if path not in paths]:
        raise ValueError(f"readout={unknown} is no synapse group; the model has: {', '.join(paths)}")
    return tuple(
        SynapseGroup(
            path=entries[0][0],
            layers=tuple(module for _, module in entries),
            layout=cast(Layout, _layout(entries[0][1])),
            aliases=tuple(path for path, _ in entries[1:]),
            readout=any(path in chosen for path, _ in entries),
            called=not any(_bypassed(module) for _, module in entries),
        )
        for entries in found.values()
    )


def find_others(model: nn.Module, groups: Sequence[SynapseGroup]) -> tuple[str, ...]:
    """Name the parameters with two or more axes that are no synapse group, for the report."""
    known = {id(group.weight) for group in groups}
    return tuple(
        f"{name} {tuple(parameter.shape)}"
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and id(parameter) not in known
    )


def _layout(module: nn.Module) -> Layout | None:
    if isinstance(module, nn.Linear):
        return Layout(transposed=0, output_axis=-1)
    if isinstance(module, _CONVOLUTIONS):
        return Layout(transposed=0, output_axis=-1 - len(module.kernel_size))
    if isinstance(module, _TRANSPOSED):
        return Layout(transposed=module.groups, output_axis=-1 - len(module.kernel_size))
    return None


def _bypassed(module: nn.Module) -> bool:
    # nn.MultiheadAttention hands out_proj's weight to a function and never calls out_proj itself
    return isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
