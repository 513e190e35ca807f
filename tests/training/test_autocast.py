"""Autocast to bfloat16: layers run in 16 bits, weights, states and updates stay in 32."""

import oracles
import pytest
import torch
from spelled_out import adamw, attached, batch, loss_of, spelled_out
from subjects import over_examples
from torch.nn import functional as F

import bouton
from bouton.passes import layer


def autocast_loss(model, step):
    x, y = batch(step)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.cross_entropy(model(x.float()), y)


def full_loss(model, step):
    return loss_of(lambda x: model(x.float()), step)


def gradients(model, loss, step=0):
    model.zero_grad()
    loss(model, step).backward()
    return [parameter.grad.double() for parameter in model.parameters()]


def distance(found, expected):
    """Of all gradients together, relative."""
    found, expected = (torch.cat([g.flatten() for g in own]) for own in (found, expected))
    return float((found - expected).norm() / expected.norm())


@over_examples
def test_gradients_are_as_near_to_those_of_full_precision_as_plain_ones(mechanism):
    model, _, handle = attached(mechanism, dtype=torch.float32)
    found = gradients(model, autocast_loss)
    reference, _ = spelled_out(mechanism, handle, dtype=torch.float32)
    assert all(gradient.isfinite().all() for gradient in found)
    with handle.paused():
        plain = gradients(model, autocast_loss)
        exact = gradients(model, full_loss)
    assert distance(found, gradients(reference, full_loss)) < 3 * max(distance(plain, exact), 2**-8)
    if mechanism.site in ("error", "wiring"):
        assert distance(found, plain) > 0.1  # so that the bound above tells the two apart


@over_examples
def test_weights_and_gradients_stay_in_32_bits_and_states_in_theirs(mechanism):
    model, optimizer, handle = attached(mechanism, adamw, dtype=torch.float32)

    def dtypes():
        claims = handle.state_dict()["claims"].values()
        return [{name: t.dtype for name, t in state.items()} for own in claims for state in own["tensors"]]

    before = dtypes()
    for step in range(4):
        gradients(model, autocast_loss, step)
        optimizer.step()
    for parameter in model.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert parameter.isfinite().all()
    assert dtypes() == before


def test_factors_have_the_outputs_dtype(monkeypatch):
    seen, modulate = [], layer.modulate

    def spy(output, factor, *rest):
        seen.append((output.dtype, factor.dtype))
        return modulate(output, factor, *rest)

    monkeypatch.setattr(layer, "modulate", spy)
    model, _, _ = attached(bouton.Grapes(), dtype=torch.float32)
    autocast_loss(model, 0).backward()
    assert seen == [(torch.bfloat16, torch.bfloat16)] * 2


@pytest.mark.parametrize("scope", ["update", "gradient"])
def test_the_update_under_autocast_is_the_plain_one_scaled(scope):
    mechanism = bouton.PlasticityDiversity(nu=0.5, scope=scope)
    model, optimizer, handle = attached(mechanism, torch.optim.SGD, dtype=torch.float32)
    before = [layer.weight.detach().clone() for layer in model[::2]]
    with handle.paused():
        plain = gradients(model, autocast_loss)[::2]
    autocast_loss(model, 0)
    gradients(model, autocast_loss)
    optimizer.step()
    claims = handle.state_dict()["claims"].values()
    for weight, old, gradient, claim in zip(model[::2], before, plain, claims, strict=True):
        rate = oracles.rates_of(claim["tensors"][0], 0.5)
        expected = old - optimizer.param_groups[0]["lr"] * rate * gradient.float()
        torch.testing.assert_close(weight.weight.detach(), expected, rtol=1e-5, atol=1e-7)
