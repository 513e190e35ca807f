from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bouton
from bouton.sites import RandomStream, Synapses

DATA = Path(__file__).parent.parent / "data" / "diversity.npz"


@pytest.mark.parametrize("case", [0, 1])
def test_agrees_with_the_published_code(case):
    with np.load(DATA) as file:
        weight = torch.from_numpy(file[f"crystallize/{case}/weight"])  # the weight of this case, too
        rate = torch.from_numpy(file[f"volume/{case}/rate"])
    ours = bouton.VolumePlasticity(normalize=False, spread=0).rule(Synapses(weight))
    torch.testing.assert_close(ours, rate, rtol=0, atol=1e-12)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2)),
    stability=st.sampled_from([0.0, 0.5, 2.0]),
    seed=st.integers(0, 9),
)
def test_equals_the_oracle(shape, stability, seed):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = oracles.volume_rate(weight, stability)
    absolute = bouton.VolumePlasticity(stability=stability, spread=0, normalize=False, base=0.5)
    torch.testing.assert_close(absolute.rule(Synapses(weight)), 0.5 * expected)
    normalized = bouton.VolumePlasticity(stability=stability, spread=0)
    torch.testing.assert_close(normalized.rule(Synapses(weight)), expected / expected.mean())


@pytest.mark.parametrize("normalize", [True, False])
def test_mean_and_spread_of_the_drawn_rates(normalize):
    weight = torch.full((300, 400), 0.5)
    synapses = Synapses(weight, stream=RandomStream(0, "test"))
    mechanism = bouton.VolumePlasticity(normalize=normalize)
    first, second = mechanism.rule(synapses), mechanism.rule(synapses)
    mean = 1.0 if normalize else 0.1 * np.exp(-2 / 3)
    error = 0.2 * mean / weight.numel() ** 0.5
    assert abs(first.mean().item() - mean) < 4 * error
    assert first.std().item() == pytest.approx(0.2 * mean, rel=0.01)
    assert (first >= 0).all()
    assert not torch.equal(first, second)  # drawn anew


def test_normalized_rates_have_mean_one_whatever_the_weights():
    weight = torch.randn(30, 40) * 3
    rate = bouton.VolumePlasticity(spread=0).rule(Synapses(weight))
    assert rate.mean().item() == pytest.approx(1)
    assert rate.flatten()[weight.abs().argmax()] == rate.min()


def test_no_stability_is_so_large_that_rates_are_lost():
    for weight in (torch.full((3, 4), 0.5), torch.randn(3, 4), torch.full((2, 2), 20.0).half()):
        rate = bouton.VolumePlasticity(stability=400.0, spread=0).rule(Synapses(weight))
        assert rate.isfinite().all()
        assert rate.float().mean().item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("wrong", [{"stability": -1}, {"spread": -0.1}, {"base": 0}])
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=r"VolumePlasticity\(" + next(iter(wrong))):
        bouton.VolumePlasticity(**wrong)


def test_two_classes_of_it_on_one_weight_multiply():
    class Other(bouton.VolumePlasticity):
        """Another class, whose rates must not lie in the same memory."""

    one, other = bouton.VolumePlasticity(spread=0.0), Other(spread=0.0, stability=8.0)
    changes = []
    for mechanisms in ([one], [other], [one, other]):
        model = torch.nn.Linear(6, 8, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.linspace(-2, 2, 48).view(8, 6))
        optimizer, before = torch.optim.SGD(model.parameters(), lr=1.0), model.weight.detach().clone()
        bouton.attach(model, optimizer, mechanisms, readout=())
        model.weight.grad = torch.ones(8, 6)
        optimizer.step()
        changes.append(before - model.weight.detach())
    torch.testing.assert_close(changes[2], changes[0] * changes[1], rtol=1e-4, atol=1e-5)
