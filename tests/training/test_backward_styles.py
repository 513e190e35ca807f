"""Other ways to the gradients than one forward and one backward pass."""

import pytest
import torch
from spelled_out import (
    INPUTS,
    assert_same_weights,
    attached,
    batch,
    filled,
    loss_of,
    sgd,
    spelled_out,
    train,
)
from subjects import over_examples
from torch import nn
from torch.nn import functional as F

import bouton


def both(mechanism, loop, make=sgd):
    """Run a loop on the attached model and on the one that is spelled out, and compare the weights."""
    model, optimizer, handle = attached(mechanism, make)
    loop(model, optimizer)
    reference, plain = spelled_out(mechanism, handle, make)
    loop(reference, plain)
    assert_same_weights(model, reference)


def by_autograd_grad(model, optimizer):
    for step in range(4):
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(loss_of(model, step), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()


def backward_twice(model, optimizer):
    for step in range(4):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward(retain_graph=True)
        loss.backward()
        optimizer.step()


def two_passes_one_backward(model, optimizer):
    for step in range(4):
        optimizer.zero_grad()
        (loss_of(model, step) + 0.5 * loss_of(model, step + 100)).backward()
        optimizer.step()


def two_passes_two_backwards(model, optimizer):
    """The losses come back in the order in which they were made, or in the other one."""
    for step in range(4):
        optimizer.zero_grad()
        losses = [loss_of(model, step), 0.5 * loss_of(model, step + 100)]
        for loss in losses if step % 2 else losses[::-1]:
            loss.backward()
        optimizer.step()


def one_pass_two_tasks(model, optimizer):
    for step in range(4):
        optimizer.zero_grad()
        x, y = batch(step)
        logits = model(x)
        F.cross_entropy(logits, y).backward(retain_graph=True)
        logits.square().mean().backward()
        optimizer.step()


def several_steps_a_backward(model, optimizer):
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        for _ in range(3):
            optimizer.step()


def in_evaluation_mode(model, optimizer):
    model.eval()
    train(model, optimizer, 4)


def a_contrast(model, optimizer):
    """Both views of a batch pass through the model, and only then is there a loss."""
    for step in range(4):
        optimizer.zero_grad()
        x, _ = batch(step)
        first, second = (F.normalize(model(view)) for view in (x, x.flip(1)))
        F.cross_entropy(first @ second.T, torch.arange(len(x))).backward()
        optimizer.step()


STYLES = {
    style.__name__: style
    for style in (
        by_autograd_grad,
        backward_twice,
        two_passes_one_backward,
        two_passes_two_backwards,
        one_pass_two_tasks,
        several_steps_a_backward,
        in_evaluation_mode,
        a_contrast,
    )
}


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@over_examples
def test_other_styles(mechanism, style):
    both(mechanism, style)


def evaluated(model, mode):
    with mode():
        loss_of(model.eval(), 99)
    model.train()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@over_examples
def test_evaluation_leaves_the_run_alone_wherever_it_comes(mechanism, mode):
    runs = []
    for looking in (False, True):
        model, optimizer, handle = attached(mechanism)
        for step in range(4):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            if looking:
                evaluated(model, mode)
            loss.backward()
            if looking:
                evaluated(model, mode)
            optimizer.step()
        runs.append([*model.parameters(), str(handle.state_dict())])
    *weights, states = runs[0]
    *expected, other_states = runs[1]
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True)) and states == other_states


@over_examples
def test_activations_in_place_right_after_the_layer(mechanism):
    runs = []
    for in_place in (True, False):
        model = nn.Sequential(
            nn.Linear(INPUTS, 8),
            nn.ReLU(in_place),
            nn.Linear(8, 8),
            nn.LeakyReLU(0.1, in_place),
            nn.Linear(8, 3),
        )
        filled(model.double())
        optimizer = sgd(model.parameters())
        bouton.attach(model, optimizer, [mechanism])
        train(model, optimizer, 4)
        runs.append(model)
    assert_same_weights(*runs, rtol=0, atol=0)


def adversaries(generator, generator_step, critic, critic_step):
    """The critic learns from samples without their past, the generator from errors that pass the critic."""
    for step in range(4):
        x, _ = batch(step)

        def made(x=x):
            return torch.cat([generator(x), x[:, 3:]], 1)

        critic_step.zero_grad()
        (critic(made().detach()).mean() - critic(x).mean()).backward()
        critic_step.step()
        generator_step.zero_grad()
        (-critic(made()).square().mean()).backward()
        generator_step.step()


@over_examples
def test_two_models_that_learn_from_each_other(mechanism):
    pairs = [attached(mechanism, seed=seed) for seed in (3, 4)]
    adversaries(*(part for model, optimizer, _ in pairs for part in (model, optimizer)))
    references = [
        spelled_out(mechanism, handle, seed=seed)
        for (_, _, handle), seed in zip(pairs, (3, 4), strict=True)
    ]
    adversaries(*(part for reference in references for part in reference))
    for (model, _, _), (reference, _) in zip(pairs, references, strict=True):
        assert_same_weights(model, reference)
