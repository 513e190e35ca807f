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
    ``layers`` the module at each path. ``elsewhere`` names the same weight in modules of other types, such
    as a tied embedding. ``unhookable`` is None where a forward hook sees the layer's output, and otherwise
    says why none can.
    """

    path: str
    layers: tuple[nn.Module, ...]
    weight: nn.Parameter
    layout: Layout
    aliases: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    readout: bool = False
    unhookable: str | None = None

    parameter = "weight"

    @property
    def name(self) -> str:
        """The weight's name in ``model.named_parameters()``."""
        return f"{self.path}.{self.parameter}" if self.path else self.parameter

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
        readout: path (or paths) of the read-out layer; by default the last layer with a weight in
            registration order, where a shared layer stands where it comes first; ``()`` for a model
            without one.

    Raises:
        ValueError: a ``readout`` path that is no synapse group; a lazy module that is not yet
            materialised.

    Example:
        >>> from torch import nn
        >>> [g.name for g in find_groups(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))]
        ['0.weight', '2.weight']
    """
    found: dict[nn.Parameter, list[tuple[str, nn.Module]]] = {}
    seen: dict[nn.Module, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        # A parametrised or pruned weight is computed at each access, and is no parameter of its own.
        weight = module._parameters.get(SynapseGroup.parameter) if _layout(module) else None
        if isinstance(weight, UninitializedParameter):
            raise ValueError(
                f"{path or type(module).__name__} is a lazy module without a weight yet; run one "
                "batch through the model before bouton.attach"
            )
        if weight is not None:
            found.setdefault(weight, []).append((path, module))
            seen.setdefault(module, path)

    if readout is None:
        chosen = list(seen.values())[-1:]
    else:
        chosen = [readout] if isinstance(readout, str) else list(readout)
    paths = [path for entries in found.values() for path, _ in entries]
    if unknown := [path for path in chosen if path not in paths]:
        known = ", ".join(path or "'' (the model itself)" for path in paths)
        raise ValueError(f"readout={unknown} is no synapse group; the model has: {known}")
    owners: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, []).append(name)
    return tuple(_group(entries, weight, owners[weight], chosen) for weight, entries in found.items())


def find_others(model: nn.Module, groups: Sequence[SynapseGroup]) -> tuple[str, ...]:
    """Name the parameters with two or more axes that are no synapse group, for the report."""
    known = {group.weight for group in groups}
    return tuple(
        f"{name} {tuple(parameter.shape)}"
        for name, parameter in model.named_parameters()
        if parameter not in known and (isinstance(parameter, UninitializedParameter) or parameter.ndim > 1)
    )


def _group(
    entries: list[tuple[str, nn.Module]], weight: nn.Parameter, owners: list[str], readout: list[str]
) -> SynapseGroup:
    layouts = {_layout(module): path for path, module in entries}
    unhookable = None
    if len(layouts) > 1:
        unhookable = f"{' and '.join(layouts.values())} share this weight and read it along different axes"
    elif any(_bypassed(module) for _, module in entries):
        unhookable = "torch reads this weight without calling the layer, so no hook can see its output"
    paths = [path for path, _ in entries]
    return SynapseGroup(
        path=paths[0],
        layers=tuple(module for _, module in entries),
        weight=weight,
        layout=cast(Layout, _layout(entries[0][1])),
        aliases=tuple(paths[1:]),
        elsewhere=tuple(name for name in owners if name.rpartition(".")[0] not in paths),
        readout=any(path in readout for path in paths),
        unhookable=unhookable,
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
