"""What spreads a model over processes."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


def sharded(model, mesh=None):
    """Each block on its own, and the rest with the root, as users are told to."""
    blocks = [model[2]] if isinstance(model, nn.Sequential) else list(model.children())[1:-1]
    for block in blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def hybrid(model):
    """Sharded over pairs of processes, each of which holds a copy of the others'."""
    shape = (2, dist.get_world_size() // 2)
    return sharded(model, init_device_mesh("cpu", shape, mesh_dim_names=("copies", "shards")))


WRAPPERS = {"ddp": DistributedDataParallel, "fsdp": sharded, "hsdp": hybrid}
