"""Updates told from an optimizer's state against copies of the weights."""

import copy

import pytest
import torch
from subjects import EXAMPLES
from torch import nn
from torch.nn.utils import prune

import bouton
from bouton.step import hook as stepping
from bouton.step import updates

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


class Others(nn.Module):
    """Weights in other layouts: looked up, packed, transposed in groups, beside others, tied, pruned."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.lstm = nn.LSTM(6, 4, batch_first=True)
        self.grown = nn.ConvTranspose1d(4, 6, 2, groups=2)
        # a bias of keys has a gradient of rounding errors alone, which Adam divides by their size
        self.attention = nn.MultiheadAttention(6, 2, bias=False, batch_first=True)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.pruned = prune.random_unstructured(nn.Linear(6, 3), "weight", 0.3)

    def forward(self, x):
        x = self.lstm(self.table(x))[0]
        x = self.grown(x.transpose(1, 2)).transpose(1, 2)
        x = self.attention(x, x, x)[0].mean(1)
        return self.pruned(torch.tanh(self.second(torch.tanh(self.first(x)))))


def trained_others(make_optimizer, mechanisms, dtype, known):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updates, "_KNOWN", known)
        torch.manual_seed(2)
        model = Others().to(dtype)
        optimizer = make_optimizer(model.parameters())
        bouton.attach(model, optimizer, mechanisms, seed=3)
        for number in range(8):
            x = torch.randint(9, (5, 3), generator=torch.Generator().manual_seed(number))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return {name: value for name, value in model.state_dict().items() if not name.endswith("mask")}


SCALING = {n: m for n, m in EXAMPLES.items() if (m.site, m.scope) == ("rate", "update")}
KINDS = {name: TOLD[name] for name in ("sgd", "momentum", "adam", "adamw")}
WIDTHS = {"float64": (torch.float64, 1e-12), "float32": (torch.float32, 1e-5)}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("optimizer_name", KINDS)
@pytest.mark.parametrize("name", SCALING)
def test_every_rate_on_weights_in_other_layouts(name, optimizer_name, width, copies):
    dtype, tolerance = WIDTHS[width]
    found = trained_others(KINDS[optimizer_name], [SCALING[name]], dtype, updates._KNOWN)
    told = [*copies]
    expected = trained_others(KINDS[optimizer_name], [SCALING[name]], dtype, {})
    assert copies[8:] == [copies[8]] * 8 and copies[8] > 0
    if SCALING[name].blind:
        assert told == [1] * 8  # in groups and transposed, a weight cannot be seen as rows of nodes
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
def test_what_closures_show_is_seen_in_the_same_step(optimizer_name):
    found, law = [], RATES["activity"]()
    for known in (updates._KNOWN, {}):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(updates, "_KNOWN", known)
            model = net()
            optimizer = TOLD[optimizer_name](model.parameters())
            bouton.attach(model, optimizer, law, seed=3)
            train(model, optimizer, 2)
            train(model, optimizer, 5, closure=True, start=2)
        found.append(model.state_dict())
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_each_parameter_group_has_settings_of_its_own(copies):
    def groups(model):
        return [
            {"params": [model[0].weight, model[0].bias], "lr": 0.02, "momentum": 0.9},
            {"params": [model[3].bias, model[5].bias]},
            {"params": [model[5].weight], "momentum": 0.5, "nesterov": True},
            {"params": [model[3].weight], "maximize": True, "lr": 0.001},
        ]

    found = []
    for known in (updates._KNOWN, {}):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(updates, "_KNOWN", known)
            model = net()
            optimizer = torch.optim.SGD(groups(model), lr=0.05)
            bouton.attach(model, optimizer, [bouton.PlasticityDiversity(nu=0.5)], seed=3, readout=())
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
            for number in range(10):
                train(model, optimizer, 1, start=number)
                schedule.step()
                if number == 4:  # a weight moves to another group
                    moved = optimizer.param_groups[0]["params"].pop(0)
                    optimizer.param_groups[1]["params"].append(moved)
        found.append(model.state_dict())
    assert copies == [1] * 10 + [3] * 10
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_a_weight_that_the_optimizer_no_longer_holds_is_named():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    bouton.attach(model, optimizer, [bouton.PlasticityDiversity()])
    train(model, optimizer, 1)
    optimizer.param_groups[0]["params"] = [model[0].weight]
    with pytest.raises(ValueError, match=r"3.weight is no longer among the optimizer's parameters; detach"):
        train(model, optimizer, 1)


@pytest.mark.parametrize(
    "options", [{"capturable": True}, {"fused": True}, {"differentiable": True}, {"lr": torch.tensor(0.1)}]
)
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_what_would_have_to_be_waited_for_is_not_told(kind, options):
    optimizer = kind([nn.Parameter(torch.ones(2))], **options)
    known = updates.known_update(optimizer)
    assert known is updates._KNOWN[kind] and not known.is_told(optimizer.param_groups[0])


def test_a_weight_that_is_not_finite_is_told_as_it_is_copied():
    found = []
    for known in (updates._KNOWN, {}):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(updates, "_KNOWN", known)
            layer = nn.Linear(3, 2, bias=False)
            layer.weight.data.copy_(torch.arange(6).view(2, 3))
            optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
            bouton.attach(layer, optimizer, [bouton.PlasticityDiversity()], seed=3, readout=())
            layer.weight.data[0, 0] = torch.inf
            layer.weight.grad = torch.tensor([[1.0, torch.nan, 1.0], [torch.inf, 0.0, -1.0]])
            optimizer.step()
        found.append(layer.weight.detach())
    torch.testing.assert_close(*found, equal_nan=True)
    assert found[0].isfinite().sum() == 3
