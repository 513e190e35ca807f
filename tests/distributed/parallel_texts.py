"""What is told in several processes: the words of refusals, and how states are laid out."""

from __future__ import annotations

import torch
from parallel_nets import TOGETHER, alone, loss_of, start
from parallel_wrappers import sharded
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor

import bouton


def words(function):
    try:
        function()
    except ValueError as error:
        return str(error)
    return "nothing was refused"


def fsdp1():
    model = FullyShardedDataParallel(nn.Linear(4, 2), device_id=torch.device("cpu"))
    return words(lambda: bouton.attach(model, None, [bouton.FeedbackAlignment()]))


def fsdp1_inside():
    model = FullyShardedDataParallel(nn.Linear(4, 2), use_orig_params=True, device_id=torch.device("cpu"))
    return words(lambda: bouton.attach(model.module, None, [bouton.FeedbackAlignment()]))


def fsdp1_after():
    layer = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    bouton.attach(layer, optimizer, [bouton.PlasticityDiversity()])
    model = FullyShardedDataParallel(layer, use_orig_params=True, device_id=torch.device("cpu"))
    model(torch.ones(1, 4)).sum().backward()
    return words(optimizer.step)


def sharded_after(*mechanisms):
    model, optimizer, _ = start(alone, "mlp", "sgd", list(mechanisms))
    fully_shard(model)

    def step():
        loss_of(model, 0, 0, 1).backward()
        optimizer.step()

    return words(step)


def optimizer_before():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fully_shard(model)
    return words(lambda: bouton.attach(model, optimizer, [bouton.PlasticityDiversity()]))


def part_of_the_model():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 2))
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bouton.attach(model[0], optimizer, [bouton.PlasticityDiversity(scope="gradient")])
    return words(lambda: model(torch.ones(1, 4)))


def activity_of_gradients():
    layer = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    law = bouton.PlasticityDiversity(distribution="activity", scope="gradient")
    return words(lambda: bouton.attach(layer, optimizer, [law]))


def layout():
    """Of each tensor of a handle's state: how many of its entries this process holds."""
    _, _, handle = start(sharded, "mlp", "adamw", TOGETHER)
    lines = []
    for key, claim in handle.state_dict()["claims"].items():
        for name, tensor in claim["tensors"][0].items():
            held = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            lines.append(f"{key} {name} {held.numel()}")
    return "\n".join(lines)


TOLD = {
    "layout": layout,
    "fsdp1": fsdp1,
    "fsdp1 inside": fsdp1_inside,
    "fsdp1 after": fsdp1_after,
    "sharded after, update": lambda: sharded_after(bouton.PlasticityDiversity()),
    "sharded after, gradient": lambda: sharded_after(bouton.PlasticityDiversity(scope="gradient")),
    "sharded after, structure": lambda: sharded_after(bouton.SpineRemodeling()),
    "optimizer before": optimizer_before,
    "part of the model": part_of_the_model,
    "activity of gradients": activity_of_gradients,
}
