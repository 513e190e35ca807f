import copy
import math

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import bouton
from bouton.mechanisms.rate_laws import LAWS
from bouton.sites import RandomStream, Synapses

NU = 0.25
# Each law that is drawn once as scipy knows it: the oracle of what is drawn in the first layer.
DRAWN = {
    "uniform": stats.uniform(1 - NU, 2 * NU),
    "normal": stats.norm(1, NU),
    "lognormal": stats.lognorm(NU, scale=torch.exp(torch.tensor(-(NU**2) / 2)).item()),
    "gamma": stats.gamma(NU**-2, scale=NU**2),
    "beta": stats.beta(1 / NU, 1 / NU, loc=1 - NU, scale=2 * NU),
    "depth": stats.uniform(1 - NU, 2 * NU),
}
FOLLOWING = ("weight", "temporal", "activity")  # with an oracle of their own below


def rates(depth=0.0, **arguments):
    synapses = Synapses(torch.empty(200, 500), depth=depth, stream=RandomStream(3, "test"))
    return oracles.rates_of(bouton.PlasticityDiversity(nu=NU, **arguments).prepare(synapses), NU)


def attached(layer, lr=0.1, seed=4, **arguments):
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    mechanism = bouton.PlasticityDiversity(nu=NU, **arguments)
    return optimizer, bouton.attach(layer, optimizer, [mechanism], seed=seed, readout=())


def state(handle, name="weight"):
    return handle.state_dict()["claims"][f"PlasticityDiversity/{name}"]["tensors"][0]


def test_every_law_has_an_oracle():
    assert sorted(LAWS) == sorted([*DRAWN, *FOLLOWING])


@pytest.mark.parametrize("distribution", DRAWN)
def test_rates_follow_their_law(distribution):
    drawn = rates(distribution=distribution, clip=None).flatten().double()
    law = DRAWN[distribution]
    assert law.mean() == pytest.approx(1, abs=1e-6)
    assert abs(drawn.mean() - 1) < 4 * law.std() / len(drawn) ** 0.5
    assert stats.kstest(drawn.numpy(), law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("distribution", DRAWN)
def test_weights_of_16_bits_have_the_rates_of_others(distribution):
    mechanism = bouton.PlasticityDiversity(nu=NU, distribution=distribution)
    single, half = (
        mechanism.prepare(Synapses(torch.empty(20, 30, dtype=dtype), stream=RandomStream(3, "test")))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(half["deviation"], single["deviation"])


@pytest.mark.parametrize("distribution", DRAWN)
def test_clip_bounds_the_rates_and_nothing_else(distribution):
    free, bound = (
        rates(distribution=distribution, clip=None),
        rates(distribution=distribution, clip=(0.9, 1.1)),
    )
    torch.testing.assert_close(bound, free.clamp(0.9, 1.1), rtol=0, atol=NU * 2**-11)  # kept in 16 bits
    assert (bound != free).any()


@given(
    nu=st.floats(0.01, 1),
    low=st.floats(0, 1),
    high=st.one_of(st.floats(1, 3), st.just(math.inf)),
    distribution=st.sampled_from(sorted(DRAWN)),
)
def test_no_rate_is_beyond_its_bounds_by_rounding(nu, low, high, distribution):
    mechanism = bouton.PlasticityDiversity(nu=nu, clip=(low, high), distribution=distribution)
    found = mechanism.prepare(Synapses(torch.empty(50, 40), stream=RandomStream(3, "test")))
    rate = oracles.rates_of(found, nu, torch.float64)
    assert ((rate >= low - 1e-12) & (rate <= high + 1e-12)).all()


@given(
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    kernel=st.integers(1, 2),
    distribution=st.sampled_from(sorted(DRAWN)),
)
def test_every_synapse_learns_at_its_own_rate(inputs, outputs, kernel, distribution):
    layer = nn.Conv1d(inputs, outputs, kernel, dtype=torch.float64)
    optimizer, handle = attached(layer, distribution=distribution)
    before, rate = layer.weight.detach().clone(), oracles.rates_of(state(handle), NU, torch.float64)
    layer(torch.randn(3, inputs, 4, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    expected = oracles.scaled_update(before, before - 0.1 * layer.weight.grad, rate)
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-12, atol=1e-12)


def test_depth_halves_the_spread_from_the_first_layer_to_the_last():
    model = nn.Sequential(nn.Linear(90, 80), nn.ReLU(), nn.Linear(80, 90), nn.ReLU(), nn.Linear(90, 80))
    _, handle = attached(model, distribution="depth")
    spread = {name: own["std"] for name, own in handle.stats()["PlasticityDiversity"].items()}
    first = NU / 3**0.5  # standard deviation of U[-nu, nu]
    expected = {"0.weight": first, "2.weight": 0.75 * first, "4.weight": 0.5 * first}
    assert spread == pytest.approx(expected, rel=0.03)


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 2)),
    clip=st.sampled_from([(0.0, 9.0), (0.9, 1.2)]),
    zero=st.booleans(),
    seed=st.integers(0, 9),
)
def test_rates_by_weight_equal_the_oracle(shape, clip, zero, seed):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    weight = 0 * weight if zero else weight
    mechanism = bouton.PlasticityDiversity(nu=NU, distribution="weight", clip=clip)
    synapses = Synapses(weight.clone(), stream=RandomStream(seed, "test"))
    synapses.state.update(mechanism.prepare(synapses))
    deviation = NU * synapses.state["deviation"].double()
    expected = oracles.weight_following_rate(weight, deviation, clip)
    torch.testing.assert_close(mechanism.rule(synapses), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(synapses.weight, weight)


def test_large_weights_spread_a_third_as_much_as_small_ones_and_rates_follow_the_weight():
    layer = nn.Linear(200, 100, bias=False)
    layer.weight.data = torch.rand(100, 200) * 2 - 1
    optimizer, _ = attached(layer, lr=1.0, distribution="weight")

    def spreads():
        before = layer.weight.detach().clone()
        layer.weight.grad = torch.ones_like(before)
        optimizer.step()
        rate, size = before - layer.weight.detach(), before.abs() / before.abs().mean()
        small, large = rate[size < 0.5], rate[size > 1.5]
        assert len(small) > 100 and len(large) > 100
        return [small.std().item(), large.std().item()]

    expected = [1.5 * NU / 3**0.5, 0.5 * NU / 3**0.5]
    assert spreads() == pytest.approx(expected, rel=0.05)
    layer.weight.data = layer.weight.flip(0).clone()  # another weight in every place
    assert spreads() == pytest.approx(expected, rel=0.05)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    steps=st.integers(1, 45),
    period=st.integers(1, 3),
    clip=st.sampled_from([(0.0, 9.0), (0.99, 1.02)]),
    seed=st.integers(0, 9),
)
def test_rates_over_time_equal_the_oracle(shape, steps, period, clip, seed):
    weight = torch.zeros(shape, dtype=torch.float64)
    stream = RandomStream(seed, "test")
    draws = Synapses(weight, stream=RandomStream(seed, "test"))
    first = draws.uniform(1 - NU, 1 + NU).clamp(*clip)
    noises = [draws.uniform(-0.1 * NU, 0.1 * NU) for _ in range(steps // (10 * period))]
    law = {"distribution": "temporal", "decay": 0.8, "period": period, "clip": clip}
    mechanism = bouton.PlasticityDiversity(nu=NU, **law)
    own = mechanism.prepare(Synapses(weight, stream=stream))
    for step in range(1, steps + 1):
        rate = mechanism.rule(Synapses(weight, state=own, step=step, stream=stream))
    expected = oracles.time_following_rate(first, noises, steps, 0.8, period, clip)
    torch.testing.assert_close(rate, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rates_near_1_over_time_until_noise_comes(dtype):
    layer = nn.Linear(60, 50, bias=False, dtype=dtype)
    optimizer, handle = attached(layer, distribution="temporal", period=1, decay=0.9)
    spread = [handle.stats()["PlasticityDiversity"]["weight"]["std"]]
    for _ in range(10):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
        spread.append(handle.stats()["PlasticityDiversity"]["weight"]["std"])
    rounded = 1e-3 if dtype == torch.float32 else 3e-3  # stats() reads rates in the weight's precision
    assert spread[:10] == pytest.approx([spread[0] * 0.9**step for step in range(10)], rel=rounded)
    assert spread[10] ** 2 == pytest.approx((spread[9] * 0.9) ** 2 + (0.1 * NU) ** 2 / 3, rel=0.1)


def test_a_small_decay_is_not_rounded_away_in_16_bits():
    layer = nn.Linear(60, 50, bias=False, dtype=torch.bfloat16)
    optimizer, handle = attached(layer, distribution="temporal", period=1, decay=0.999)
    before = state(handle)["deviation"]
    for _ in range(9):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
    torch.testing.assert_close(state(handle)["deviation"], before * 0.999**9)


def test_time_goes_by_once_in_a_step_however_often_gradients_are_scaled():
    layer = nn.Linear(5, 4, bias=False)
    optimizer, handle = attached(layer, distribution="temporal", scope="gradient", period=1, decay=0.5)
    first = oracles.rates_of(state(handle), NU)
    for step in range(9):
        optimizer.zero_grad()
        for _ in range(3):
            layer(torch.ones(2, 5)).sum().backward()
        torch.testing.assert_close(layer.weight.grad, 6 * (1 + (first - 1) * 0.5**step))
        optimizer.step()


def test_looking_and_skipped_steps_let_no_time_go_by():
    layer = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)
    law = bouton.PlasticityDiversity(nu=NU, distribution="temporal", period=1, decay=0.5)
    handle = bouton.attach(layer, optimizer, [law])
    layer.weight.grad = torch.ones(4, 5)
    optimizer.step()
    before, once = state(handle), handle.stats()
    assert handle.stats() == once
    # what torch.amp.GradScaler hands to a fused optimizer
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.ones(())
    optimizer.step()
    assert torch.equal(state(handle)["deviation"], before["deviation"])
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    torch.testing.assert_close(state(handle)["deviation"], before["deviation"] * 0.5)


@pytest.mark.parametrize("distribution", FOLLOWING)
@pytest.mark.parametrize("saved_at", [9, 10, 13])
def test_a_run_goes_on_from_its_saved_state(distribution, saved_at):
    def run(steps, layer, optimizer):
        for step in steps:
            optimizer.zero_grad()
            layer(torch.randn(3, 5, generator=torch.Generator().manual_seed(step))).sum().backward()
            optimizer.step()
        return layer.weight.detach().clone()

    def start():
        torch.manual_seed(0)
        layer = nn.Linear(5, 4)
        return layer, *attached(layer, distribution=distribution, period=1)

    layer, optimizer, _ = start()
    whole = run(range(25), layer, optimizer)
    layer, optimizer, handle = start()
    run(range(saved_at), layer, optimizer)
    saved = copy.deepcopy((layer.state_dict(), handle.state_dict()))
    layer, optimizer, handle = start()
    layer.load_state_dict(saved[0])
    handle.load_state_dict(saved[1])
    assert torch.equal(run(range(saved_at, 25), layer, optimizer), whole)


LAYERS = {
    "linear": (lambda inputs, nodes: nn.Linear(inputs, nodes), lambda inputs: (3, inputs), -1),
    "unbatched": (lambda inputs, nodes: nn.Linear(inputs, nodes), lambda inputs: (inputs,), -1),
    "sequence": (lambda inputs, nodes: nn.Linear(inputs, nodes), lambda inputs: (2, 3, inputs), -1),
    "conv": (lambda inputs, nodes: nn.Conv1d(inputs, nodes, 2), lambda inputs: (2, inputs, 3), -2),
    "transposed": (
        lambda inputs, nodes: nn.ConvTranspose2d(inputs, nodes, 2),
        lambda inputs: (inputs, 2, 2),
        -3,
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
@given(
    inputs=st.integers(1, 4),
    nodes=st.integers(1, 4),
    passes=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_rates_by_activity_equal_the_oracle(kind, inputs, nodes, passes, seed):
    make, shape, axis = LAYERS[kind]
    torch.manual_seed(seed)
    layer = make(inputs, nodes)
    layer.weight.data.mul_(torch.rand(layer.weight.shape) < 0.3)  # so that outputs near 0 occur
    layer.bias.data.zero_()
    optimizer, handle = attached(layer, distribution="activity", clip=None)
    layer.weight.grad = torch.zeros_like(layer.weight)
    outputs = []
    for _ in range(passes):
        outputs.append(layer(torch.randn(shape(inputs))).detach())
        optimizer.step()  # by which they are counted
    layer.eval()(torch.randn(shape(inputs)))  # is not counted
    found = handle.stats()["PlasticityDiversity"]["weight"]
    deviation = NU * state(handle)["deviation"].double()
    expected = oracles.activity_following_rate(outputs, axis, deviation)
    for name, value in {"mean": expected.mean(), "min": expected.min(), "max": expected.max()}.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-5)


def test_active_nodes_spread_less_and_silent_ones_more():
    layer = nn.Linear(300, 80, bias=False)
    layer.weight.data[:60] = 0
    optimizer, _ = attached(layer, lr=1.0, distribution="activity")
    before = layer.weight.detach().clone()
    layer(torch.randn(5, 300))
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    rate = before - layer.weight.detach()
    # a silent node's share of the activity is 0, and that of a node among 20 of 80 is 4
    expected = [1.1 * NU / 3**0.5, 0.8 * NU / 3**0.5]
    assert [rate[:60].std().item(), rate[60:].std().item()] == pytest.approx(expected, rel=0.03)


def test_activity_is_seen_without_another_forward_pass(monkeypatch):
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    calls, linear = [], nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda *a: calls.append(a) or linear(*a))
    optimizer, handle = attached(model, distribution="activity")
    for _ in range(3):
        model(torch.ones(2, 5)).sum().backward()
        optimizer.step()
    assert len(calls) == 6
    assert state(handle, "0.weight")["active"].sum() > 0


def test_processes_that_train_together_do_not_count_activity_apart(monkeypatch):
    law = {"distribution": "activity", "scope": "gradient"}
    layer = nn.Linear(5, 4)
    attached(layer, **law)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    attached(nn.Linear(5, 4), distribution="weight", scope="gradient")
    attached(nn.Linear(5, 4), distribution="activity")
    with pytest.raises(ValueError, match="their rates would differ; use scope='update'"):
        attached(nn.Linear(5, 4), **law)
    with pytest.raises(ValueError, match="their rates would differ; use scope='update'"):
        layer(torch.ones(1, 5)).sum().backward()  # attached before


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
    [
        {"nu": -0.1},
        {"nu": 1e-9},
        {"nu": float("nan")},
        {"distribution": "cauchy"},
        {"scope": "all"},
        {"clip": (2, 1)},
        {"decay": 1.5},
        {"period": 0},
        {"period": 2.5},
    ],
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=r"PlasticityDiversity\(" + next(iter(wrong))):
        bouton.PlasticityDiversity(**wrong)
