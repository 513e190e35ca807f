"""Steps in which a weight has no gradient: zero_grad, a branch not taken, layers frozen for a while."""

import pytest
import torch
from spelled_out import adamw, assert_same_weights, attached, loss_of, sgd, spelled_out, train
from subjects import over_examples

import bouton

over_makes = pytest.mark.parametrize("make", [sgd, adamw])
WITHOUT = (1, 2, 5)  # steps


def run(model, optimizer, spare=lambda model: model[2].parameters(), steps=8):
    """In some steps, a layer's gradients are taken away."""
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        if step in WITHOUT:
            for parameter in spare(model):
                parameter.grad = None
        optimizer.step()


@over_makes
@over_examples
def test_a_weight_without_a_gradient_stays_and_the_others_learn(mechanism, make):
    model, optimizer, handle = attached(mechanism, make)
    run(model, optimizer)
    reference, plain = spelled_out(mechanism, handle, make)
    run(reference, plain)
    assert_same_weights(model, reference)


@over_makes
@over_examples
def test_a_weight_without_a_gradient_keeps_its_bits(mechanism, make):
    model, optimizer, handle = attached(mechanism, make)
    train(model, optimizer, 2)
    loss_of(model, 2).backward()
    kept, events = model[2].weight.detach().clone(), handle.stats()
    model[2].weight.grad = None
    for _ in range(4):
        optimizer.step()
    assert torch.equal(model[2].weight, kept)
    if mechanism.site == "structure":
        name = type(mechanism).__name__
        assert handle.stats()[name]["2.weight"]["events"] == events[name]["2.weight"]["events"]
        assert handle.stats()[name]["0.weight"]["events"] > events[name]["0.weight"]["events"]


@over_makes
@over_examples
def test_gradients_set_to_zero_or_to_none_between_steps(mechanism, make):
    runs = []
    for set_to_none in (True, False):
        model, optimizer, _ = attached(mechanism, make)
        for step in range(5):
            optimizer.zero_grad(set_to_none=set_to_none)
            loss_of(model, step).backward()
            optimizer.step()
        runs.append(model)
    assert_same_weights(*runs, rtol=0, atol=0)


@over_makes
@over_examples
def test_a_zero_gradient_is_a_gradient(mechanism, make):
    """As in plain training, momentum and weight decay go on where gradients are zeros."""

    def train_on_zeros(model, optimizer):
        train(model, optimizer, 2)
        optimizer.zero_grad(set_to_none=False)
        for _ in range(3):
            optimizer.step()

    model, optimizer, handle = attached(mechanism, make)
    train_on_zeros(model, optimizer)
    reference, plain = spelled_out(mechanism, handle, make)
    train_on_zeros(reference, plain)
    assert_same_weights(model, reference)


@over_makes
@over_examples
def test_a_layer_frozen_for_some_steps_is_left_alone_in_them(mechanism, make):
    model, optimizer, handle = attached(mechanism, make)
    for step in range(8):
        optimizer.zero_grad()
        model[0].requires_grad_(step not in WITHOUT)
        loss_of(model, step).backward()
        assert (model[0].weight.grad is None) == (step in WITHOUT)
        optimizer.step()
    reference, plain = spelled_out(mechanism, handle, make)
    run(reference, plain, lambda model: model[0].parameters())
    assert_same_weights(model, reference)


class Branches(torch.nn.Module):
    """One of two layers is asked, by the batch."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Linear(6, 8, dtype=torch.float64)
        self.sides = torch.nn.ModuleList(torch.nn.Linear(8, 8, dtype=torch.float64) for _ in range(2))
        self.head = torch.nn.Linear(8, 3, dtype=torch.float64)

    def forward(self, x, side):
        return self.head(torch.tanh(self.sides[side](torch.tanh(self.stem(x)))))


@over_examples
def test_a_branch_that_is_not_taken_stays(mechanism):
    model = Branches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    bouton.attach(model, optimizer, [mechanism])
    for step in range(6):
        optimizer.zero_grad()
        other = [parameter.detach().clone() for parameter in model.sides[1 - step % 2].parameters()]
        own = model.sides[step % 2].weight.detach().clone()
        loss_of(lambda x, side=step % 2: model(x, side), step).backward()
        optimizer.step()
        for before, after in zip(other, model.sides[1 - step % 2].parameters(), strict=True):
            assert torch.equal(before, after)
        assert not torch.equal(own, model.sides[step % 2].weight)
