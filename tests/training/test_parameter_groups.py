"""Settings per group, groups that come later, schedules, several optimizers."""

import dataclasses

import pytest
import torch
from spelled_out import adamw, assert_same_weights, attached, loss_of, sgd, spelled_out, train
from subjects import EXAMPLES, over_examples
from torch import nn

import bouton

over_makes = pytest.mark.parametrize("make", [sgd, adamw])
ON_STEPS = {
    name: mechanism for name, mechanism in EXAMPLES.items() if mechanism.site in ("rate", "structure")
}
over_those_on_steps = pytest.mark.parametrize("mechanism", ON_STEPS.values(), ids=ON_STEPS)


@over_makes
@over_examples
def test_rates_scale_each_groups_own_update(mechanism, make):
    """With a learning rate and a weight decay of its own for each layer, one of them zero."""

    def grouped(parameters):
        parameters = list(parameters)
        settings = [(0.2, 0.0), (0.0, 0.1), (0.05, 0.3)]
        return make(
            [
                {"params": parameters[2 * layer : 2 * layer + 2], "lr": lr, "weight_decay": decay}
                for layer, (lr, decay) in enumerate(settings)
            ]
        )

    model, optimizer, handle = attached(mechanism, grouped)
    train(model, optimizer, 5)
    reference, plain = spelled_out(mechanism, handle, grouped)
    train(reference, plain, 5)
    assert_same_weights(model, reference)


def scheduled(model, optimizer, plain):
    """Warm-up from a learning rate of zero, then cosine; the scheduler itself steps an epoch at a time."""
    warm = torch.optim.lr_scheduler.LambdaLR(plain, lambda step: min(step, 3) / 3)
    for step in range(6):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        warm.step()


@over_makes
@over_examples
def test_a_warm_up_from_zero(mechanism, make):
    model, optimizer, handle = attached(mechanism, make)
    scheduled(model, optimizer, optimizer)
    reference, plain = spelled_out(mechanism, handle, make)
    scheduled(reference, plain, plain.plain)
    assert_same_weights(model, reference)


@over_makes
@over_examples
def test_a_learning_rate_of_zero_moves_no_weight_but_by_structure(mechanism, make):
    model, optimizer, _ = attached(mechanism, lambda parameters: make(parameters, lr=0.0))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, optimizer, 4)
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert any(changed) == (mechanism.site == "structure")


@over_makes
@over_those_on_steps
def test_a_group_that_is_added_later(mechanism, make):
    """The layers that mechanisms took learn as before; what came later learns as in plain training."""
    mechanism = dataclasses.replace(mechanism, where=["0", "2"])

    def run(later):
        model, _, _ = attached(mechanism, make)
        bouton.detach(model)
        first = [model[0].weight, model[2].weight]
        rest = [parameter for parameter in model.parameters() if not any(parameter is w for w in first)]
        optimizer = make(first)
        if not later:
            optimizer.add_param_group({"params": rest, "lr": 0.02})
        bouton.attach(model, optimizer, [mechanism], seed=3)
        for step in range(6):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            if step < 3:  # the group is not there yet, or has nothing to do
                for parameter in rest:
                    parameter.grad = None
            elif step == 3 and later:
                optimizer.add_param_group({"params": rest, "lr": 0.02})
            optimizer.step()
        return model, optimizer

    (model, optimizer), (other, other_optimizer) = run(later=True), run(later=False)
    assert_same_weights(model, other, rtol=0, atol=0)
    assert str(optimizer.state_dict()) == str(other_optimizer.state_dict())


def test_what_is_added_later_is_plain():
    """Its update is the optimizer's own, whatever the mechanisms do to the layers beside it."""
    model, optimizer, _ = attached(bouton.PlasticityDiversity(nu=1.0, clip=None))
    later = nn.Linear(5, 4)
    optimizer.add_param_group(
        {"params": later.parameters(), "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}
    )
    train(model, optimizer, 1)
    before = later.weight.detach().clone()
    later.weight.grad = torch.ones(4, 5)
    optimizer.step()
    assert torch.equal(later.weight.detach(), before - 0.5)


@over_those_on_steps
def test_two_handles_with_an_optimizer_each(mechanism):
    """As one handle on the whole, for mechanisms that look at one layer at a time."""
    model, optimizer, _ = attached(dataclasses.replace(mechanism, where=["0", "2"]))
    train(model, optimizer, 5)

    parts, _, _ = attached(mechanism)
    bouton.detach(parts)
    optimizers = [sgd(parts[0].parameters()), sgd([*parts[2].parameters(), *parts[4].parameters()])]
    for path, own in zip("02", optimizers, strict=True):
        if path == "0" and getattr(mechanism, "mode", None) == "presynaptic":
            continue  # it leaves the first layer as it is
        bouton.attach(parts, own, [dataclasses.replace(mechanism, where=path)], seed=3)
    for step in range(5):
        parts.zero_grad()
        loss_of(parts, step).backward()
        for own in optimizers:
            own.step()
    assert_same_weights(parts, model, rtol=0, atol=0)
