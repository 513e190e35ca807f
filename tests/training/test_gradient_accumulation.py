"""Several micro-batches, each with its share of the loss, are one big batch."""

import pytest
import torch
from nets import CLASSES, NETS
from spelled_out import adamw, assert_same_weights, attached, batch, sgd, spelled_out, train
from subjects import over_examples
from torch import nn
from torch.nn import functional as F

import bouton

STEPS, PARTS = 5, 4


def accumulate(model, optimizer):
    for step in range(STEPS):
        optimizer.zero_grad()
        x, y = batch(step)
        for part, labels in zip(x.chunk(PARTS), y.chunk(PARTS), strict=True):
            (F.cross_entropy(model(part), labels) / PARTS).backward()
        optimizer.step()


@pytest.mark.parametrize("make", [sgd, adamw])
@over_examples
def test_micro_batches_equal_one_batch(mechanism, make):
    model, optimizer, handle = attached(mechanism, make)
    accumulate(model, optimizer)
    reference, plain = spelled_out(mechanism, handle, make)
    train(reference, plain, STEPS)
    assert_same_weights(model, reference)


def run(net, mechanism, parts):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETS[net]().double()
    for module in model.modules():
        if isinstance(getattr(module, "norm", None), nn.BatchNorm2d):
            module.norm = nn.Identity()  # its statistics are those of the micro-batch
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    bouton.attach(model, optimizer, [mechanism])
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.randn(8, 36, generator=generator, dtype=torch.float64)
        y = torch.randint(CLASSES, (8,), generator=generator)
        optimizer.zero_grad()
        for part, labels in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (F.cross_entropy(model(part), labels) / parts).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("net", ["residual", "tied", "transformer", "cells"])
@over_examples
def test_micro_batches_equal_one_batch_in_other_nets(mechanism, net):
    assert_same_weights(run(net, mechanism, parts=4), run(net, mechanism, parts=1))
