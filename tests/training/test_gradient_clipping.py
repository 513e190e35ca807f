"""Clipping comes after what acts on errors and gradients, and before what acts on the update."""

import oracles
import pytest
import torch
from spelled_out import adamw, assert_same_weights, attached, loss_of, sgd, spelled_out
from subjects import over_examples

import bouton

NORM, VALUE = 0.2, 0.02


def by_norm(parameters):
    return torch.nn.utils.clip_grad_norm_(parameters, NORM) > NORM


def by_value(parameters):
    clipped = any((parameter.grad.abs() > VALUE).any() for parameter in parameters)
    torch.nn.utils.clip_grad_value_(parameters, VALUE)
    return clipped


def train(model, optimizer, clip):
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        assert clip(list(model.parameters()))
        optimizer.step()


@pytest.mark.parametrize("clip", [by_norm, by_value])
@pytest.mark.parametrize("make", [sgd, adamw])
@over_examples
def test_runs_with_clipping(mechanism, make, clip):
    model, optimizer, handle = attached(mechanism, make)
    train(model, optimizer, clip)
    reference, plain = spelled_out(mechanism, handle, make)
    train(reference, plain, clip)
    assert_same_weights(model, reference)


def test_the_order_by_hand():
    """With one layer and no optimizer state, what comes out shows what came first."""
    rate_after = bouton.PlasticityDiversity(nu=1.0, clip=None)
    rate_before = bouton.PlasticityDiversity(nu=1.0, clip=None, scope="gradient")
    for mechanism in (rate_after, rate_before):
        layer = torch.nn.Linear(5, 4, bias=False)
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        handle = bouton.attach(layer, optimizer, [mechanism])
        rate = oracles.rates_of(
            handle.state_dict()["claims"]["PlasticityDiversity/weight"]["tensors"][0], 1.0
        )
        before, gradient = layer.weight.detach().clone(), torch.ones(4, 5)
        layer(torch.ones(1, 5)).sum().backward()
        torch.nn.utils.clip_grad_value_(layer.parameters(), 0.5)
        optimizer.step()
        clipped = (rate * gradient).clamp(max=0.5) if mechanism is rate_before else rate * 0.5
        torch.testing.assert_close(before - layer.weight.detach(), clipped)
