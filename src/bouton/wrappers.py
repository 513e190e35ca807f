"""Modules that wrap a model, to compile it or to train it in parallel, and put a name before its own."""

from __future__ import annotations

from torch import nn

_PREFIXES = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})  # torch.compile, checkpoint_wrapper


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that a wrapper runs in several processes or on several devices."""
    while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    return model


def own_name(name: str) -> str:
    """A module's or parameter's name without those of wrappers on its path.

    So that draws, states and ``where=`` are the same for a model and the same one in a wrapper.

    Example:
        >>> own_name("_orig_mod.blocks.0._checkpoint_wrapped_module.weight")
        'blocks.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _PREFIXES)
