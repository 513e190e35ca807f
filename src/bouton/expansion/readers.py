"""Where a layer's output goes: through pointwise operations alone, to layers that sum over its nodes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx, nn

from bouton.expansion.pointwise import channelwise_axes, is_batch_size, is_flattening, is_pointwise
from bouton.expansion.surgery import KINDS
from bouton.expansion.tracing import Trace, trace_model


@dataclass(frozen=True)
class Reader:
    """A layer that sums over the nodes of another.

    ``flat`` if all axes but the first are joined in between, of which the nodes were the first if
    ``channels_first``, and the last if not.
    """

    layer: nn.Module
    flat: bool
    channels_first: bool


class UnmergeableError(Exception):
    """Says why the readers of a layer's output are not known, or are not only such layers."""


class Readers:
    """Finds the readers of a model's layers in its traced forward pass, on inputs with a batch axis."""

    def __init__(self, model: nn.Module) -> None:
        self._paths = {module: path for path, module in model.named_modules()}
        self._traces, self._failures = trace_model(model)

    def why_bound(self, layer: nn.Module) -> str | None:
        """Why other weights would change more than the layer's output, None if they do not."""
        if self._read(layer) & {"weight", "bias"}:
            return f"the forward pass reads the weights of {self._paths[layer]} beside calling it"
        return None

    def of(self, layer: nn.Module, axis: int) -> list[Reader]:
        """The layers that read the output of ``layer``, whose nodes lie on ``axis``, counted from the end.

        Raises:
            UnmergeableError: something else reads it, or cannot be ruled out to do so.
        """
        if not any(layer in trace.modules.values() for trace in self._traces):
            raise UnmergeableError("; ".join(self._failures) or "no call of it is seen in the traced model")
        found: list[Reader] = []
        for trace in self._traces:
            found += self._follow(trace, layer, axis)
        for module in [layer, *(reader.layer for reader in found)]:
            if names := self._read(module):
                raise UnmergeableError(
                    f"the forward pass reads {', '.join(sorted(names))} of {self._paths[module]}"
                )
        for reader in set(found):
            calls = sum(module is reader.layer for t in self._traces for module in t.modules.values())
            if calls != found.count(reader):
                raise UnmergeableError(
                    f"it goes to {self._paths[reader.layer]}, which reads other signals as well"
                )
        return list(dict.fromkeys(found))

    def _read(self, layer: nn.Module) -> set[str]:
        """Which weights and sizes of a layer the forward pass is seen to read."""
        names = [name.rpartition(".") for trace in self._traces for name in trace.reads]
        return {name for path, _, name in names if path == self._paths[layer]}

    def _follow(self, trace: Trace, layer: nn.Module, axis: int) -> list[Reader]:
        found: list[Reader] = []
        flat: dict[fx.Node, bool] = {}  # the layer's signal wherever it goes, and whether it is flattened
        for node in trace.graph.nodes:
            module = trace.modules.get(node)
            inputs = [flat[other] for other in node.all_input_nodes if other in flat]
            if inputs and module is not None and type(module) in KINDS:
                found.append(self._reader(node, module, inputs[0], axis))
            elif inputs and not is_batch_size(node):
                if node.op == "output":
                    raise UnmergeableError(f"it is an output of {trace.name}")
                if len(inputs) < len(node.all_input_nodes) and not is_flattening(node, module):
                    raise UnmergeableError(
                        f"it is combined with another signal in {self._name(node, module)}"
                    )
                flat[node] = self._passed(node, module, inputs, axis)
            if module is layer:
                flat[node] = False
        return found

    def _reader(self, node: fx.Node, module: nn.Module, flat: bool, axis: int) -> Reader:
        name = self._name(node, module)
        if module._forward_hooks or module._forward_pre_hooks:
            raise UnmergeableError(f"it goes to {name}, which bears a hook")
        own = -1 if isinstance(module, nn.Linear) else -1 - len(module.kernel_size)  # type: ignore[arg-type]
        if own != (-1 if flat else axis):
            raise UnmergeableError(f"it goes to {name}, which sums along another axis")
        return Reader(module, flat, channels_first=axis < -1)

    def _passed(self, node: fx.Node, module: nn.Module | None, inputs: Sequence[bool], axis: int) -> bool:
        """Whether the signal is flattened behind an operation, which is seen to keep the nodes apart."""
        if module is not None and (module._forward_hooks or module._forward_pre_hooks):
            raise UnmergeableError(f"it goes through {self._name(node, module)}, which bears a hook")
        if len(set(inputs)) == 1:
            if is_flattening(node, module):
                return True
            axes = channelwise_axes(node, module)
            if is_pointwise(node, module) or (axes == -1 - axis and not inputs[0]):
                return inputs[0]
        raise UnmergeableError(f"it goes to {self._name(node, module)}")

    def _name(self, node: fx.Node, module: nn.Module | None) -> str:
        if module is not None:
            return f"{self._paths[module]} ({type(module).__name__})"
        return str(getattr(node.target, "__name__", node.target))
