"""What ``torch.compile`` and ``torch.jit.script`` must be told about hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn

_NOT_SCRIPTED = (
    "torch.jit.script cannot compile the hooks of bouton; use torch.export.export or torch.jit.trace, or "
    "detach the handle before"
)


def forward_only() -> bool:
    """Whether a program is being recorded that holds the forward pass alone."""
    # not is_exporting(), which torch.compile of torch 2.11 takes for true
    return torch._C._get_tracing_state() is not None or torch.compiler._is_exporting_flag


class HookedParameters(dict[str, Tensor | None]):
    """The parameters of a hooked layer, in a type of its own.

    ``torch.compile`` does not look again whether a layer without hooks still has none
    (``torch._dynamo.config.skip_nnmodule_hook_guards``), and takes the graph of a plain layer for any other
    layer of its class. It does look at the type of this dictionary.
    """


def tell_hooked(layer: nn.Module) -> None:
    """Keep graphs of plain layers from this one."""
    layer.__dict__["_parameters"] = HookedParameters(layer._parameters)


def tell_switched(layers: Sequence[nn.Module]) -> None:
    """Show hooked layers as changed, because their hooks act from now on, or no longer.

    Torch 2.11 looks at an object again only where a dictionary on the way to it has changed.
    """
    for layer in layers:
        if isinstance(layer._parameters, HookedParameters):
            tell_hooked(layer)


def tell_plain(layer: nn.Module) -> None:
    """The inverse of :func:`tell_hooked`."""
    if isinstance(layer._parameters, HookedParameters):
        layer.__dict__["_parameters"] = dict(layer._parameters)


@cache
def keep_out_of_graphs(kind: type, *methods: str, reason: str) -> None:
    """Let methods of a class run as they are, wherever ``torch.compile`` meets them.

    Not a decorator, because :mod:`torch._dynamo` takes seconds to import.
    """
    for name in methods:
        setattr(kind, name, _kept_out(vars(kind)[name], reason))


def _kept_out(method: Callable[..., Any], reason: str) -> Callable[..., Any]:
    apart = torch.compiler.disable(method, reason=reason)

    @wraps(method)
    def either(*arguments: Any) -> Any:
        # that of torch calls five functions of its own, in each step, also where nothing is compiled
        return apart(*arguments) if torch.compiler.is_dynamo_compiling() else method(*arguments)

    return either


class Unscripted:
    """A hook that ``torch.jit.script`` refuses by name."""

    @property
    def __name__(self) -> str:
        raise AttributeError(_NOT_SCRIPTED)
