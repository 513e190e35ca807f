"""Weights whose entries are spread over processes, as torch's ``fully_shard`` spreads them.

Such a weight is a DTensor: each process holds some of its rows. Rules see it as a whole or in parts (see
:attr:`bouton.Mechanism.in_parts`), and what they return is laid out as the weight is before it is written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from torch import Tensor, nn

_NOTHING_SPREAD = nullcontext()
_FLAT = (
    "{} is sharded by FullyShardedDataParallel, which keeps the weights of several layers in one flat "
    "parameter, so that no rule sees a layer's weight; use torch.distributed.fsdp.fully_shard instead, "
    "build the optimizer after it, and then call bouton.attach"
)


def _loaded(name: str) -> Any:
    """A module of torch if anything has imported it; there is no object of its classes otherwise."""
    return sys.modules.get(f"torch.distributed.{name}")


def is_spread(tensor: object) -> bool:
    """Whether a tensor's entries are spread over processes."""
    module = _loaded("tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all of its entries; for one that is spread, all processes must call this."""
    return cast(Any, tensor).full_tensor() if is_spread(tensor) else tensor


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor laid out over processes as ``like`` is; a whole one needs no communication for it."""
    if not is_spread(like):
        return whole(tensor)
    pattern = cast(Any, like)
    if not is_spread(tensor):
        kind = _loaded("tensor")
        replicated = [kind.Replicate()] * pattern.device_mesh.ndim
        tensor = tensor.to(like.device)
        tensor = kind.DTensor.from_local(tensor, pattern.device_mesh, replicated, run_check=False)
    return cast(Tensor, cast(Any, tensor).redistribute(pattern.device_mesh, pattern.placements))


def local(tensor: Tensor) -> Tensor:
    """The entries that this process holds, in the same memory; for use without gradients."""
    return cast(Tensor, cast(Any, tensor.detach()).to_local()) if is_spread(tensor) else tensor


def all_hold_a_part(tensor: Tensor) -> bool:
    """Whether no process is left without an entry: there, torch's own reductions fail or wait for ever."""
    pattern = cast(Any, tensor)
    sizes = list(tensor.shape)
    for count, placement in zip(pattern.device_mesh.shape, pattern.placements, strict=True):
        if placement.is_shard():
            largest = -(-sizes[placement.dim] // count)
            sizes[placement.dim] -= (count - 1) * largest  # what is left for the last process
    return min(sizes, default=1) > 0


def mixing(*weights: Tensor) -> AbstractContextManager[None]:
    """Inside this context, a whole tensor that is the same in all processes goes with spread ones."""
    if not weights or not any([is_spread(weight) for weight in weights]):
        return _NOTHING_SPREAD
    from torch.distributed.tensor.experimental import implicit_replication

    return implicit_replication()


def refuse_flat(model: nn.Module) -> None:
    """Refuse a model that is sharded in a way that hides its layers' weights.

    Raises:
        ValueError: a module is sharded by FullyShardedDataParallel.
    """
    module = _loaded("fsdp")
    for path, layer in model.named_modules() if module else ():
        if isinstance(layer, module.FullyShardedDataParallel):
            raise ValueError(_FLAT.format(path or "the model"))
        for name, parameter in layer._parameters.items():
            refuse_part_of_flat(f"{path}.{name}".removeprefix("."), parameter)


def refuse_part_of_flat(name: str, parameter: nn.Parameter | None) -> None:
    """Refuse one parameter that has become a part of a flat one; see :func:`refuse_flat`."""
    if getattr(parameter, "_fsdp_flattened", False):
        raise ValueError(_FLAT.format(name))


def reshard(model: nn.Module) -> None:
    """Let the layers that ``fully_shard`` manages hold their parameters again, and not whole copies.

    After a forward pass alone, as in an evaluation, the outermost ones hold copies.
    """
    for shard in _sharded_modules(model):
        shard.reshard()


def unsharded_parameters(model: nn.Module, weights: Iterable[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """The tensor whose gradient autograd makes, for those of ``weights`` that ``fully_shard`` manages.

    It is another one than the parameter: that of a forward pass, which torch makes once and keeps. All
    processes must call this, which gathers one module's weights at a time.
    """
    found: dict[nn.Parameter, Tensor] = {}
    wanted = {weight for weight in weights if is_spread(weight)}
    for shard in _sharded_modules(model) if wanted else ():
        places = [
            (layer, name, parameter)
            for layer in shard.modules()
            for name, parameter in layer._parameters.items()
            if parameter in wanted
        ]
        shard.unshard()
        for layer, name, parameter in places:
            if layer._parameters[name] is not parameter:
                found[parameter] = cast(Tensor, layer._parameters[name])
        shard.reshard()
    return found


def _sharded_modules(model: nn.Module) -> list[Any]:
    """The modules that ``fully_shard`` was called on."""
    module = _loaded("fsdp")
    return [m for m in model.modules() if isinstance(m, module.FSDPModule)] if module else []
