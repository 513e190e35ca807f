import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import bouton
from bouton.mechanism import RandomStream, Synapses
from bouton.mechanisms.plasticity_diversity import DISTRIBUTIONS

NU = 0.25
# Each law as scipy knows it: the oracle of what is drawn.
LAWS = {
    "uniform": stats.uniform(1 - NU, 2 * NU),
    "normal": stats.norm(1, NU),
    "lognormal": stats.lognorm(NU, scale=torch.exp(torch.tensor(-(NU**2) / 2)).item()),
    "gamma": stats.gamma(NU**-2, scale=NU**2),
    "beta": stats.beta(1 / NU, 1 / NU, loc=1 - NU, scale=2 * NU),
}


def rates(**arguments):
    synapses = Synapses(torch.empty(200, 500), stream=RandomStream(3, "test"))
    return bouton.PlasticityDiversity(nu=NU, **arguments).prepare(synapses)["rate"]


def test_every_law_has_an_oracle():
    assert LAWS.keys() == DISTRIBUTIONS.keys()


@pytest.mark.parametrize("distribution", LAWS)
def test_rates_follow_their_law(distribution):
    drawn = rates(distribution=distribution, clip=None).flatten().double()
    law = LAWS[distribution]
    assert law.mean() == pytest.approx(1, abs=1e-6)
    assert abs(drawn.mean() - 1) < 4 * law.std() / len(drawn) ** 0.5
    assert stats.kstest(drawn.numpy(), law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("distribution", LAWS)
def test_clip_bounds_the_rates_and_nothing_else(distribution):
    free, bound = (
        rates(distribution=distribution, clip=None),
        rates(distribution=distribution, clip=(0.9, 1.1)),
    )
    assert torch.equal(bound, free.clamp(0.9, 1.1))
    assert (bound != free).any()


@given(
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    kernel=st.integers(1, 2),
    distribution=st.sampled_from(sorted(LAWS)),
)
def test_every_synapse_learns_at_its_own_rate(inputs, outputs, kernel, distribution):
    layer = nn.Conv1d(inputs, outputs, kernel, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    mechanism = bouton.PlasticityDiversity(nu=NU, distribution=distribution)
    bouton.attach(layer, optimizer, [mechanism], seed=4)
    before = layer.weight.detach().clone()
    layer(torch.randn(3, inputs, 4, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    stream = RandomStream(4, "PlasticityDiversity/weight")
    rate = mechanism.prepare(Synapses(before, stream=stream))["rate"]
    expected = oracles.scaled_update(before, before - 0.1 * layer.weight.grad, rate)
    torch.testing.assert_close(layer.weight.detach(), expected)


def change(optimizer, scope):
    """Relative change of one learned update by diversity at nu = 0.49."""
    updates = []
    for mechanisms in ([], [bouton.PlasticityDiversity(nu=0.49, scope=scope)]):
        torch.manual_seed(0)
        layer = nn.Linear(50, 20, bias=False)
        step = optimizer(layer.parameters(), lr=1e-3)
        if mechanisms:
            bouton.attach(layer, step, mechanisms, readout=())
        before = layer.weight.detach().clone()
        layer(torch.randn(16, 50)).square().mean().backward()
        step.step()
        updates.append(layer.weight.detach() - before)
    return ((updates[1] - updates[0]).norm() / updates[0].norm()).item()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_scaled_gradients_cancel_under_normalising_optimizers_and_scaled_updates_do_not(optimizer):
    expected = 0.49 / 3**0.5  # standard deviation of U[1 - nu, 1 + nu]
    assert change(optimizer, "update") == pytest.approx(expected, rel=0.1)
    if optimizer is torch.optim.SGD:
        assert change(optimizer, "gradient") == pytest.approx(expected, rel=0.1)
    else:
        assert change(optimizer, "gradient") < 0.01


@pytest.mark.parametrize(
    "wrong",
    [{"nu": -0.1}, {"nu": float("nan")}, {"distribution": "cauchy"}, {"scope": "all"}, {"clip": (2, 1)}],
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=r"PlasticityDiversity\(" + next(iter(wrong))):
        bouton.PlasticityDiversity(**wrong)
