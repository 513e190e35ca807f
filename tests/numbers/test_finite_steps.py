"""No mechanism makes a number infinite, or not a number, that plain training leaves finite.

A rate above 1 leads beyond the plain step, and a factor above 1 beyond the plain error. Where that is
beyond the largest number of a precision it is infinite, as whatever overflows: GradScaler must see it, to
choose a smaller scale. So all here is of numbers of which ``REACH`` times the plain update can be
represented, and no mechanism has a larger rate by default.
"""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numbers_given import DTYPES, ON_PASSES, ON_STEPS, numbers
from torch import nn

import bouton

STEPS, REACH = 3, 20
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5),
    "momentum": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, eps=1e-3),  # 1e-8 is 0 in float16
}


def net(dtype, values):
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)
    for layer, own in zip(model[::2], values.split([6, 12, 8]), strict=True):
        layer.weight.data.copy_(own.view_as(layer.weight))
    return model


class Witness:
    """Weights before and after each plain step: its hooks run before those that ``attach`` adds."""

    def __init__(self, optimizer, weights):
        self.weights = weights
        optimizer.register_step_pre_hook(lambda *step: setattr(self, "before", self.copies()))
        optimizer.register_step_post_hook(lambda *step: setattr(self, "plain", self.copies()))

    def copies(self):
        return [weight.detach().clone() for weight in self.weights]

    def check(self):
        for weight, before, plain in zip(self.weights, self.before, self.plain, strict=True):
            step = plain.double() - before.double()
            could = before.double().abs() + REACH * step.abs() <= torch.finfo(weight.dtype).max
            assert (weight.detach().isfinite() | ~could).all()


@pytest.mark.parametrize("mechanism", ON_STEPS.values(), ids=ON_STEPS)
@given(
    dtype=st.sampled_from(DTYPES),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    finite=st.booleans(),
    data=st.data(),
)
@settings(max_examples=15)
def test_where_the_plain_step_is_finite_so_is_the_attached_one(mechanism, dtype, optimizer, finite, data):
    """Also beside weights and gradients that are not, where ``finite`` is False."""
    model = net(dtype, data.draw(numbers(dtype, 26, finite=finite), "weights"))
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    weights = [layer.weight for layer in model[::2]]
    witness = Witness(optimizer, weights)
    bouton.attach(model, optimizer, [dataclasses.replace(mechanism, **often(mechanism))])
    largest = torch.finfo(dtype).max / (REACH if mechanism.scope == "gradient" else 1)
    for _ in range(STEPS):
        gradients = data.draw(numbers(dtype, 26, largest, finite), "gradients").split([6, 12, 8])
        optimizer.zero_grad()
        with torch.no_grad():
            model(torch.ones(2, 2, dtype=dtype))  # for rules that observe outputs
        for weight, gradient in zip(weights, gradients, strict=True):
            gradient = gradient.view_as(weight)
            weight.backward(gradient)
            assert (weight.grad.isfinite() | ~gradient.isfinite()).all()
        optimizer.step()
        witness.check()


@pytest.mark.parametrize("mechanism", ON_PASSES.values(), ids=ON_PASSES)
@given(dtype=st.sampled_from(DTYPES), optimizer=st.sampled_from(list(OPTIMIZERS)), data=st.data())
def test_errors_and_outputs_that_can_be_represented_stay_finite(mechanism, dtype, optimizer, data):
    """Weights are up to 8, so that neither plain outputs and errors nor twice these overflow float16."""
    model = net(dtype, data.draw(numbers(dtype, 26, largest=8.0), "weights"))
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    handle = bouton.attach(model, optimizer, [mechanism])
    for _ in range(STEPS):
        optimizer.zero_grad()
        inputs = data.draw(numbers(dtype, 6, largest=8.0), "inputs").view(3, 2)
        model(inputs).square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        for own in handle.stats().values():
            assert all(torch.tensor(list(n.values())).isfinite().all() for n in own.values())
        for parameter in model.parameters():
            parameter.grad.clamp_(-1, 1)  # or the weights leave their bounds
        optimizer.step()
        for parameter in model.parameters():
            parameter.data.clamp_(-8, 8)


def often(mechanism):
    """Arguments that make a mechanism with a period act at every step."""
    return {"every": 1} if any(field.name == "every" for field in dataclasses.fields(mechanism)) else {}
