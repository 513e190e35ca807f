"""What a forward pass does, traced by torch.fx: which layers it calls, and what it reads beside."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from bouton.expansion.surgery import KINDS

# torch's own layers, in which these methods alone use linear1 and linear2; no tracer gets through the whole
_BLOCKS = {nn.TransformerEncoderLayer: "_ff_block", nn.TransformerDecoderLayer: "_ff_block"}
_SIZES = ("in_features", "out_features", "in_channels", "out_channels")
_MOST_OPTIONS = 4


@dataclass(frozen=True)
class Trace:
    """One way through a forward pass.

    ``modules`` are the model's own modules that it calls, ``reads`` names the parameters and the sizes of
    layers that it reads beside.
    """

    name: str
    graph: fx.Graph
    modules: Mapping[fx.Node, nn.Module]
    reads: frozenset[str]


def trace_model(model: nn.Module) -> tuple[list[Trace], list[str]]:
    """All ways through a model in evaluation mode, and why parts of it cannot be traced.

    Inputs that are None by default give two ways each. The model is left as it is.
    """
    traces: list[Trace] = []
    failures: list[str] = []
    places = [("", model, "forward")] if type(model) not in KINDS else []
    places += [
        (path, part, _BLOCKS[type(part)]) for path, part in model.named_modules() if type(part) in _BLOCKS
    ]
    for path, part, method in places:
        try:
            traces += [_trace(path, part, method, absent) for absent in _absences(getattr(part, method))]
        except Exception as error:  # the model's own code ran on proxies, and may raise anything
            reason = str(error).strip().partition("\n")[0]
            failures.append(f"{path or 'the model'} cannot be traced ({reason})")
    return traces, failures


def _absences(forward: Callable[..., object]) -> Iterator[dict[str, None]]:
    """Every choice of optional inputs that may be None together."""
    parameters = inspect.signature(forward).parameters.values()
    options = [parameter.name for parameter in parameters if parameter.default is None]
    if len(options) > _MOST_OPTIONS:
        raise ValueError(f"it has {len(options)} optional inputs")
    for chosen in itertools.product([True, False], repeat=len(options)):
        yield dict.fromkeys(itertools.compress(options, chosen))


def _trace(path: str, part: nn.Module, method: str, absent: dict[str, None]) -> Trace:
    # a forward pass that is traced may leave proxies in the module; parameters it cannot change
    twin = copy.deepcopy(part, {id(parameter): parameter for parameter in part.parameters()}).eval()
    graph = _Tracer(method).trace(twin, absent)
    modules = {node: part.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"}
    reads = [node.target for node in graph.nodes if node.op == "get_attr" and not _is_harmless(node)]
    prefix = f"{path}." if path else ""
    return Trace(prefix + method, graph, modules, frozenset(prefix + name for name in reads))


def _is_harmless(node: fx.Node) -> bool:
    return all(user.target is getattr and user.args[1] in ("dtype", "device") for user in node.users)


class _Tracer(fx.Tracer):
    def __init__(self, method: str) -> None:
        super().__init__()
        self.traced_func_name = method

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # a hook of the user's must not see proxies
        hooked = bool(m._forward_hooks or m._forward_pre_hooks)
        return hooked or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(self, *arguments: Any, **options: Any) -> Any:
        made = super().create_args_for_root(*arguments, **options)
        for path, module in self.root.named_modules():
            for name in _SIZES:
                if type(module) in KINDS and name in vars(module):
                    # so that the graph shows where a size is read, instead of the number of today
                    vars(module)[name] = self.create_proxy("get_attr", f"{path}.{name}".strip("."), (), {})
        return made
