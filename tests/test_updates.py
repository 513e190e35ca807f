"""Updates told from an optimizer's state against copies of the weights."""

import copy

import pytest
import torch
from torch import nn

import bouton
from bouton import step as stepping
from bouton import updates

RATES = {
    "static": lambda: [bouton.PlasticityDiversity(nu=0.5)],
    "seeded": lambda: [bouton.PlasticityDiversity(nu=0.5, stored=False)],
    "normal": lambda: [bouton.PlasticityDiversity(nu=0.3, distribution="normal")],
    "activity": lambda: [bouton.PlasticityDiversity(nu=0.5, distribution="activity")],
    "temporal": lambda: [bouton.PlasticityDiversity(nu=0.5, distribution="temporal", period=2, decay=0.5)],
    "nodes": lambda: [bouton.Grapes(mode="local")],
    "both": lambda: [bouton.PlasticityDiversity(nu=0.5), bouton.Grapes(mode="local")],
}
TOLD = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd-maximize": lambda p: torch.optim.SGD(p, lr=0.01, maximize=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.2, weight_decay=0.1),
    "momentum-maximize": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5, maximize=True),
    "foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adam-maximize": lambda p: torch.optim.Adam(p, lr=0.001, betas=(0.5, 0.9), eps=1e-3, maximize=True),
    "adamw-still": lambda p: torch.optim.AdamW(p, lr=0.0),
}
COPIED = {
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "decay": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1),
    "tensor": lambda p: torch.optim.SGD(p, lr=torch.tensor(0.05)),
    "fused": lambda p: torch.optim.SGD(p, lr=0.05, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "subclass": lambda p: type("Own", (torch.optim.SGD,), {})(p, lr=0.05),
}


def net():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv1d(3, 6, 2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 7), nn.Tanh(), nn.Linear(7, 2)
    )
    return model.double()


def train(model, optimizer, steps, closure=False, start=0):
    for number in range(start, start + steps):
        x = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(number))

        def loss(x=x):
            optimizer.zero_grad()
            value = model(x).square().mean()
            value.backward()
            return value

        if closure:
            optimizer.step(loss)
        else:
            loss()
            optimizer.step()


@pytest.fixture
def copies(monkeypatch):
    """How many weights were copied, step by step."""
    counts, take = [], stepping.take_snapshots

    def counted(groups):
        groups = list(groups)
        counts.append(len(groups))
        return take(groups)

    monkeypatch.setattr(stepping, "take_snapshots", counted)
    return counts


def by_copies(make_optimizer, mechanisms, *arguments, **options):
    """The same run, with all updates scaled by copies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updates, "_KNOWN", {})
        model = net()
        optimizer = make_optimizer(model.parameters())
        bouton.attach(model, optimizer, mechanisms, seed=3)
        train(model, optimizer, *arguments, **options)
    return model


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("optimizer_name", TOLD)
def test_told_updates_are_scaled_as_copied_ones(optimizer_name, rates, copies):
    model = net()
    optimizer = TOLD[optimizer_name](model.parameters())
    bouton.attach(model, optimizer, RATES[rates](), seed=3)
    train(model, optimizer, 20)
    assert copies == [0] * 20
    expected = by_copies(TOLD[optimizer_name], RATES[rates](), 20)
    assert copies[20:] and min(copies[20:]) > 0
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("optimizer_name", COPIED)
def test_other_updates_are_told_by_copies(optimizer_name, copies):
    model = net()
    optimizer = COPIED[optimizer_name](model.parameters())
    bouton.attach(model, optimizer, [bouton.PlasticityDiversity()])
    train(model, optimizer, 2)
    assert copies == [3, 3]


@pytest.mark.parametrize("optimizer_name", ["momentum", "adamw"])
def test_settings_may_change_between_steps(optimizer_name, copies):
    def run(model, optimizer):
        train(model, optimizer, 3)
        optimizer.param_groups[0]["lr"] *= 0.3
        train(model, optimizer, 3, closure=True, start=3)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 1.0})
        model[3].weight.requires_grad_(False)  # from now on without a gradient
        train(model, optimizer, 3, start=6)

    found = []
    for known in (updates._KNOWN, {}):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(updates, "_KNOWN", known)
            model = net()
            optimizer = TOLD[optimizer_name](model.parameters())
            bouton.attach(model, optimizer, [bouton.PlasticityDiversity(nu=0.5)], seed=3)
            run(model, optimizer)
        found.append(model.state_dict())
    assert copies[:9] == [0] * 9 and min(copies[9:]) > 0
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_a_change_to_other_settings_is_seen(copies):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    bouton.attach(model, optimizer, [bouton.PlasticityDiversity()])
    train(model, optimizer, 1)
    optimizer.param_groups[0]["nesterov"] = True
    train(model, optimizer, 1)
    assert copies == [0, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_copied_because_they_round_what_is_added(dtype, copies):
    layer = nn.Linear(5, 4, dtype=dtype)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    bouton.attach(layer, optimizer, [bouton.PlasticityDiversity()])
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    assert copies == [1]


def test_a_rule_of_which_nothing_is_known_sees_the_weight_to_the_bit(copies):
    seen = []

    class Looks(bouton.Mechanism):
        site = "rate"

        def rule(self, synapses):
            seen.append(synapses.weight.clone())
            return torch.full_like(synapses.weight, 0.5)

    layer = nn.Linear(5, 4)
    optimizer = torch.optim.AdamW(layer.parameters())
    bouton.attach(layer, optimizer, [Looks()])
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    assert torch.equal(seen[-1], before) and copies == [1]


def test_static_rates_take_two_bytes_or_none():
    model = nn.Linear(50, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for distribution in ("uniform", "normal", "lognormal", "gamma", "beta", "depth", "weight"):
        for stored, size in ((True, 2), (False, 0)):
            if not stored and distribution in ("gamma", "beta"):
                continue
            mechanism = bouton.PlasticityDiversity(distribution=distribution, stored=stored)
            handle = bouton.attach(model, optimizer, [mechanism], readout=())
            (own,) = handle.state_dict()["claims"].values()
            assert sum(t.nbytes for state in own["tensors"] for t in state.values()) == size * 2000
            handle.detach()
