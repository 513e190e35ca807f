"""A layer that is frozen at attach and trains later."""

import copy
import warnings

import pytest
import torch
from torch import nn

import bouton


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def train(model, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 6, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()


def test_it_trains_plainly_and_that_is_said_once():
    (plain, plain_optimizer), (model, optimizer) = make(), make()
    bouton.attach(model, optimizer, [bouton.PlasticityDiversity(nu=0), bouton.SpineRemodeling(where="2")])
    train(model, optimizer, 2), train(plain, plain_optimizer, 2)
    for net in (model, plain):
        net[0].requires_grad_(True)
    with pytest.warns(UserWarning, match=r"0.weight: .*because it was frozen.*where=\['0'\]"):
        train(model, optimizer, 1)
    train(plain, plain_optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, 2), train(plain, plain_optimizer, 2)
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_a_second_attachment_takes_it_in():
    model, optimizer = make()
    first = bouton.attach(model, optimizer, [bouton.PlasticityDiversity()])
    model[0].requires_grad_(True)
    second = bouton.attach(model, optimizer, [bouton.PlasticityDiversity(where=["0"])])
    train(model, optimizer, 2)
    assert first.stats()["PlasticityDiversity"].keys() == {"2.weight", "4.weight"}
    assert second.stats()["PlasticityDiversity"]["0.weight"]["steps"] == 2


def test_copies_and_detached_handles():
    model, optimizer = make()
    handle = bouton.attach(model, optimizer, [bouton.PlasticityDiversity()])
    other, other_optimizer, _ = copy.deepcopy((model, optimizer, handle))
    handle.detach()
    for net in (model, other):
        net[0].requires_grad_(True)
    train(model, optimizer, 1)
    with pytest.warns(UserWarning, match="0.weight"):
        train(other, other_optimizer, 1)
