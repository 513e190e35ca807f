"""Modules that wrap a model, to compile it or to train it in parallel, and put a name before its own."""

from __future__ import annotations

from typing import cast

from torch import nn

_PREFIXES = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})  # torch.compile, checkpoint_wrapper
_PARALLEL = nn.parallel.DistributedDataParallel, nn.DataParallel


def own_name(model: nn.Module, name: str) -> str:
    """A module's or parameter's name within ``model``, without those of wrappers on its path.

    So that draws, states and ``where=`` are the same for a model and the same one in a wrapper.

    Example:
        >>> model = nn.DataParallel(nn.Sequential(nn.Linear(4, 2)))
        >>> own_name(model, "module.0.weight")
        '0.weight'
    """
    parts, module = [], model
    for part in name.split("."):
        if part not in _PREFIXES and not (part == "module" and isinstance(module, _PARALLEL)):
            parts.append(part)
        if part in module._modules:  # the last part may be a parameter's
            module = cast(nn.Module, module._modules[part])
    return ".".join(parts)
