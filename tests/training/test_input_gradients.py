"""Gradients at the input: of a frozen model, and as a part of the loss."""

import pytest
import torch
from spelled_out import adamw, assert_same_weights, attached, batch, sgd, spelled_out
from subjects import EXAMPLES, over_examples
from torch.nn import functional as F

import bouton

WITHOUT_FEEDBACK = {
    name: mechanism
    for name, mechanism in EXAMPLES.items()
    if not isinstance(mechanism, bouton.FeedbackAlignment)
}


def penalised(model, optimizer):
    """A gradient penalty: the gradient at the input is part of the loss."""
    for step in range(3):
        optimizer.zero_grad()
        x, y = batch(step)
        loss = F.cross_entropy(model(x.requires_grad_()), y)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + 10 * slope.square().sum()).backward()
        optimizer.step()


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("mechanism", WITHOUT_FEEDBACK.values(), ids=WITHOUT_FEEDBACK)
def test_gradients_of_gradients(mechanism, make):
    model, optimizer, handle = attached(mechanism, make)
    penalised(model, optimizer)
    reference, plain = spelled_out(mechanism, handle, make)
    penalised(reference, plain)
    assert_same_weights(model, reference)


@pytest.mark.parametrize("kind", ["fa", "dfa"])
def test_gradients_of_gradients_through_feedback_are_refused(kind):
    model, optimizer, _ = attached(bouton.FeedbackAlignment(kind=kind))
    with pytest.raises(RuntimeError, match="differentiate twice a function"):
        penalised(model, optimizer)


@over_examples
def test_the_gradient_at_the_input_of_a_frozen_model(mechanism):
    model, _, handle = attached(mechanism)
    x, y = batch(0)
    F.cross_entropy(model(x.clone().requires_grad_()), y).backward()  # draws the feedback
    reference, _ = spelled_out(mechanism, handle)
    found = []
    for net in (model, reference):
        net.requires_grad_(False)
        source = x.clone().requires_grad_()
        found.append(torch.autograd.grad(F.cross_entropy(net(source), y), source)[0])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
