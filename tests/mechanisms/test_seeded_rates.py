"""Rates that are drawn again in every step instead of being kept."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import random_normal, random_short
from scipy import stats
from torch import nn

import bouton
from bouton.mechanisms.rate_laws import LAWS
from bouton.sites import RandomStream, Synapses

NU = 0.25
SEEDED = [name for name, law in LAWS.items() if law.seedable]


def seeded(**arguments):
    return bouton.PlasticityDiversity(nu=NU, stored=False, **arguments)


def rates(mechanism, shape=(40, 50), seed=3, dtype=torch.float32, **arguments):
    """The rates of a weight, and what draws them."""
    arguments.setdefault("stream", RandomStream(seed, "test"))
    weight = torch.ones(shape, dtype=dtype)
    synapses = Synapses(weight, **arguments)
    synapses.state.update(mechanism.prepare(synapses))
    return mechanism.rule(synapses)


def bytes_of(handle):
    claims = handle.state_dict()["claims"].values()
    tensors = [
        tensor
        for claim in claims
        for state, made in zip(claim["tensors"], claim["made"], strict=True)
        for tensor in [*state.values(), *dict(made).values()]
    ]
    return sum(tensor.nbytes for tensor in tensors)


def train(layer, optimizer, steps=4):
    for step in range(steps):
        optimizer.zero_grad()
        layer(torch.randn(3, 60, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("distribution", LAWS)
@pytest.mark.parametrize("scope", ["update", "gradient"])
def test_bytes_of_state(distribution, scope):
    nodes, fan_in = 40, 60
    synapses = nodes * fan_in
    for stored in (True, False) if distribution in SEEDED else (True,):
        layer = nn.Linear(fan_in, nodes)
        optimizer = torch.optim.AdamW(layer.parameters())
        law = {"distribution": distribution, "scope": scope, "period": 1}
        handle = bouton.attach(layer, optimizer, [bouton.PlasticityDiversity(stored=stored, **law)])
        train(layer, optimizer)
        each = 4 if distribution == "temporal" else 2  # and temporal counts its updates
        counts = {"activity": (8 + 8 + 4) * nodes, "temporal": 8}.get(distribution, 0)
        assert bytes_of(handle) == counts + stored * each * synapses


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2)),
    start=st.integers(0, 9),
    count=st.integers(0, 5),
    seed=st.integers(0, 9),
)
def test_rates_equal_the_oracle(shape, start, count, seed):
    stream = RandomStream(seed, "test", count)  # however often was drawn before
    key = RandomStream(seed, "test").key()
    places = range(start, start + torch.Size(shape).numel())
    own = {"shape": shape, "start": start, "stream": stream, "dtype": torch.float64}
    drawn = torch.tensor([random_short(key, i) / 2**15 for i in places], dtype=torch.float64).view(shape)
    torch.testing.assert_close(rates(seeded(), **own), 1 + NU * drawn, rtol=0, atol=1e-12)
    found = rates(seeded(distribution="depth"), depth=0.5, **own)
    torch.testing.assert_close(found, 1 + NU * drawn * 0.75, rtol=0, atol=1e-6)
    # all weights are 1, and so is their mean
    torch.testing.assert_close(rates(seeded(distribution="weight"), **own), 1 + NU * drawn)
    drawn = torch.tensor([random_normal(key, i) for i in places], dtype=torch.float64).view(shape)
    expected = (1 + NU * drawn).clamp(0.5, 2)
    torch.testing.assert_close(rates(seeded(distribution="normal"), **own), expected, rtol=0, atol=1e-5)
    expected = (NU * drawn - NU**2 / 2).exp().clamp(0.5, 2)
    found = rates(seeded(distribution="lognormal"), **own)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert stream.count == count  # nothing was drawn that another draw would miss


@pytest.mark.parametrize("distribution", ["uniform", "normal", "lognormal", "depth"])
def test_rates_follow_their_law(distribution):
    found = rates(seeded(distribution=distribution, clip=None), (300, 400), dtype=torch.float64).flatten()
    law = {
        "normal": stats.norm(1, NU),
        "lognormal": stats.lognorm(NU, scale=torch.exp(torch.tensor(-(NU**2) / 2)).item()),
    }.get(distribution, stats.uniform(1 - NU, 2 * NU))
    assert stats.kstest(found.numpy(), law.cdf).pvalue > 1e-4
    assert abs(found.mean().item() - 1) < 4 * law.std() / len(found) ** 0.5


@pytest.mark.parametrize("distribution", SEEDED)
def test_rates_keep_within_their_bounds(distribution):
    for clip in ((0.9, 1.05), (0.5, 2.0), (1.0, 1.0)):
        found = rates(seeded(distribution=distribution, clip=clip), dtype=torch.float64)
        assert ((found >= clip[0] - 1e-7) & (found <= clip[1] + 1e-7)).all()


@pytest.mark.parametrize("distribution", SEEDED)
@given(first=st.integers(0, 6), count=st.integers(0, 6), start=st.integers(0, 9))
def test_some_nodes_have_the_rates_that_they_have_as_a_part_of_the_whole(distribution, first, count, start):
    mechanism = seeded(distribution=distribution)
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    synapses = Synapses(weight, stream=RandomStream(1, "part"), start=start)
    synapses.state.update(mechanism.prepare(synapses))
    known = mechanism.survey(synapses)
    synapses = Synapses(weight, state=synapses.state, stream=synapses.stream, start=start, survey=known)
    whole = mechanism.rule(synapses)
    part = mechanism.rule(synapses.rows(first, first + count))
    assert torch.equal(part, whole[first : first + count])


@pytest.mark.parametrize("distribution", ["uniform", "normal", "lognormal", "depth"])
def test_rates_stay_the_same_in_all_steps_and_copies_and_are_others_for_others(distribution):
    def trained(seed, width=60):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(width, 40, bias=False), nn.Linear(40, width, bias=False))
        optimizer = torch.optim.SGD(layers.parameters(), lr=1.0)
        mechanism = seeded(distribution=distribution, clip=None)
        return layers, optimizer, bouton.attach(layers, optimizer, [mechanism], seed=seed, readout=())

    def step(layers, optimizer, handle):
        before = [layer.weight.detach().clone() for layer in layers]
        for layer in layers:
            layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
        return [old - layer.weight.detach() for old, layer in zip(before, layers, strict=True)]

    run = trained(1)
    first = step(*run)
    for again in (step(*run), step(*copy.deepcopy(run)), step(*trained(1))):
        for found, rate in zip(again, first, strict=True):
            torch.testing.assert_close(found, rate, rtol=0, atol=1e-5)
    others = [*step(*trained(2)), first[1].T]
    for found, rate in zip(others, [*first, first[0]], strict=True):
        assert not torch.allclose(found, rate, atol=0.1 * NU)


def test_blocks_of_a_packed_weight_have_rates_of_their_own():
    layer = nn.LSTM(5, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    bouton.attach(layer, optimizer, [seeded()], readout=())
    before = layer.weight_ih_l0.detach().clone()
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    blocks = (before - layer.weight_ih_l0.detach()).chunk(4)
    assert not any(torch.allclose(blocks[0], block, atol=0.01) for block in blocks[1:])


@pytest.mark.parametrize("distribution", SEEDED)
def test_scaled_gradients_and_scaled_updates_are_the_same_under_plain_sgd(distribution):
    if distribution == "activity":
        pytest.skip("a gradient is scaled before its forward pass is counted in an update")
    results = []
    for scope in ("update", "gradient"):
        torch.manual_seed(0)
        layer = nn.Linear(60, 8, dtype=torch.float64)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        bouton.attach(layer, optimizer, [seeded(distribution=distribution, scope=scope)], readout=())
        for number in range(3):
            x = torch.randn(3, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
        results.append(layer.weight.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("distribution", sorted({*LAWS} - {*SEEDED}))
def test_laws_that_cannot_be_drawn_again_are_refused(distribution):
    assert distribution in ("beta", "gamma", "temporal")
    message = (
        rf"stored=False\) cannot repeat the draws of '{distribution}'; use stored=True, or one of: uni"
    )
    with pytest.raises(ValueError, match=message):
        seeded(distribution=distribution)


def test_stored_is_true_or_false():
    with pytest.raises(ValueError, match=r"PlasticityDiversity\(stored=1\): use True or False"):
        bouton.PlasticityDiversity(stored=1)


def test_a_state_of_kept_rates_is_no_state_of_seeded_ones():
    handles = []
    for stored in (True, False):
        layer = nn.Linear(5, 4)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        mechanism = bouton.PlasticityDiversity(stored=stored)
        handles.append(bouton.attach(layer, optimizer, [mechanism], readout=()))
    with pytest.raises(ValueError):
        handles[1].load_state_dict(handles[0].state_dict())
    with pytest.raises(ValueError):
        handles[0].load_state_dict(handles[1].state_dict())
