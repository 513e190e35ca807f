"""channels_last: as with contiguous memory, and everything stays in the format that it has."""

import pytest
import torch
from subjects import over_examples
from torch import nn
from torch.nn import functional as F

import bouton

over_optimizers = pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])


def start(mechanism, kind, memory_format):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Tanh(),
        nn.ConvTranspose2d(8, 4, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    model = model.double().to(memory_format=memory_format)
    optimizer = kind(model.parameters(), lr=0.01)
    return model, optimizer, bouton.attach(model, optimizer, [mechanism])


def loss_of(model, step, memory_format):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(4, 3, 6, 6, generator=generator, dtype=torch.float64)
    return F.cross_entropy(model(x.contiguous(memory_format=memory_format)), torch.arange(4).remainder(3))


def train(model, optimizer, memory_format, steps=4):
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step, memory_format).backward()
        optimizer.step()


@over_optimizers
@over_examples
def test_the_format_does_not_change_the_run(mechanism, kind):
    runs = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model, optimizer, handle = start(mechanism, kind, memory_format)
        train(model, optimizer, memory_format)
        states = [claim["tensors"] for claim in handle.state_dict()["claims"].values()]
        runs.append([model.state_dict(), states, handle.stats()])
    torch.testing.assert_close(*runs, rtol=1e-9, atol=1e-12)


@over_optimizers
@over_examples
def test_weights_moments_and_outputs_keep_the_format(mechanism, kind):
    model, optimizer, _ = start(mechanism, kind, torch.channels_last)
    formats = {
        name: parameter.stride() for name, parameter in model.named_parameters() if parameter.ndim == 4
    }
    outputs = []
    for layer in (model[0], model[2], model[4]):
        layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    train(model, optimizer, torch.channels_last)
    for name, parameter in model.named_parameters():
        if parameter.ndim != 4:
            continue
        assert parameter.stride() == formats[name]
        for moment in optimizer.state[parameter].values():
            assert (
                not isinstance(moment, torch.Tensor) or not moment.ndim or moment.stride() == formats[name]
            )
    assert len(outputs) == 12
    for output in outputs:
        assert output.is_contiguous(memory_format=torch.channels_last)


@over_examples
def test_weights_are_converted_after_attach(mechanism):
    model, optimizer, _ = start(mechanism, torch.optim.SGD, torch.contiguous_format)
    model.to(memory_format=torch.channels_last)
    train(model, optimizer, torch.channels_last)
    other, other_optimizer, _ = start(mechanism, torch.optim.SGD, torch.contiguous_format)
    train(other, other_optimizer, torch.contiguous_format)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=1e-9, atol=1e-12)
