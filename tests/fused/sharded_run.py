"""A weight that fully_shard spreads over processes, stepped in parts; compared with the whole one."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import bouton.fused
from bouton.fused import SeededRates, stepping


def main():
    stepping._DEVICES = set(sys.argv[1:])  # where kernels run
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for name in ("SGD", "AdamW"):
        torch.manual_seed(0)
        whole = nn.Linear(3, 5, bias=False)
        parts = nn.Linear(3, 5, bias=False)
        parts.load_state_dict(whole.state_dict())
        fully_shard(parts, mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
        options = {"lr": 0.1, "momentum": 0.9} if name == "SGD" else {"lr": 0.1}
        optimizers = [getattr(bouton.fused, name)(net.parameters(), **options) for net in (whole, parts)]
        optimizers[0].rates[whole.weight] = SeededRates(key=(1, 2), nu=0.9)
        # 3 rows of 3 lie in the first process, so that the second starts at an odd place
        optimizers[1].rates[parts.weight] = SeededRates(key=(1, 2), nu=0.9, start=rank * 9)
        inputs = torch.randn(4, 3)
        for _ in range(3):
            for net, optimizer in zip((whole, parts), optimizers, strict=True):
                optimizer.zero_grad()
                net(inputs).square().sum().backward()
                optimizer.step()
        torch.testing.assert_close(parts.weight.full_tensor(), whole.weight)
        if rank == 0:
            sys.stdout.write(f"{name}: {optimizers[1].path}\n")
    dist.destroy_process_group()
    # Some of gloo's threads may still hold tensors: one that lets go while Python ends aborts the process.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
