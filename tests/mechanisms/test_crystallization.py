from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bouton
from bouton.mechanisms.crystallization import crystallizing
from bouton.sites import Synapses

DATA = Path(__file__).parent.parent / "data" / "diversity.npz"


@pytest.mark.parametrize("case", [0, 1])
def test_agrees_with_the_published_code(case):
    with np.load(DATA) as file:
        names = ("weight", "grad", "rate")
        weight, gradient, rate = (torch.from_numpy(file[f"crystallize/{case}/{name}"]) for name in names)
    synapses = Synapses(weight, gradient, state={"rate": torch.ones_like(weight)})
    ours = bouton.Crystallization(threshold=2e-2).rule(synapses)
    torch.testing.assert_close(ours, rate, rtol=0, atol=1e-12)
    assert 0 < (rate < 1).sum() < rate.numel()


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2)),
    threshold=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 9),
)
def test_equals_the_oracle(shape, threshold, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64).round(decimals=1)
    gradient = torch.randn(shape, generator=generator, dtype=torch.float64).round(decimals=1)
    expected = oracles.crystallizing(weight, gradient, threshold)
    assert torch.equal(crystallizing(weight, gradient, threshold), expected)


def test_rates_fall_step_by_step_and_scale_the_update():
    layer = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle = bouton.attach(layer, optimizer, [bouton.Crystallization()])
    still = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])  # where it is 0 the synapse has settled
    for step in range(1, 4):
        before = layer.weight.detach().clone()
        layer.weight.grad = 0.1 * before.abs().mean() * still
        optimizer.step()
        rates = handle.state_dict()["claims"]["Crystallization/weight"]["tensors"][0]["rate"]
        torch.testing.assert_close(rates, torch.where(still > 0, 1.0, 0.6**step))
        # looked at with the gradient still there
        assert handle.stats()["Crystallization"]["weight"]["min"] == pytest.approx(0.6**step)
        torch.testing.assert_close(layer.weight.detach(), before - 0.1 * rates * layer.weight.grad)


@pytest.mark.parametrize("wrong", [{"threshold": -1}, {"factor": 1.5}, {"factor": "half"}])
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=r"Crystallization\(" + next(iter(wrong))):
        bouton.Crystallization(**wrong)
