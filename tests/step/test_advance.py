"""Weights that are stepped part by part against torch's own steps."""

import contextlib
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import nn

import bouton
import bouton.fused
from bouton.native import steps
from bouton.step import advance, hook, own_step
from bouton.tensors import scratch

NEUTRAL = bouton.Crystallization(factor=1.0)  # its rule looks at all, and no rate ever falls
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd-decay": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1, maximize=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.2, foreach=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.5, 0.9), maximize=True, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5, eps=1e-3),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, maximize=True),
}
EVERY = pytest.mark.parametrize("optimizer_name", OPTIMIZERS)


@pytest.fixture
def parts(monkeypatch):
    """How many parts were stepped."""
    count = []
    steps.is_torchs()  # tries one
    for where, name in ((advance, "adam"), (advance, "sgd"), (steps.SgdStep, "__call__")):
        function = getattr(where, name)

        def counted(*arguments, function=function, **options):
            done = function(*arguments, **options)
            count.extend([1] * (done is not False))
            return done

        monkeypatch.setattr(where, name, counted)
    return count


def make(optimizer_name, mechanisms=(), shape=(700, 401)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False), nn.Linear(3, 2))
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    handle = bouton.attach(model, optimizer, mechanisms, seed=1, readout=()) if mechanisms else None
    return model, optimizer, handle


def step(model, optimizer, number):
    generator = torch.Generator().manual_seed(number)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)
    optimizer.step()


def check_same(model, optimizer, other, other_optimizer):
    for weight, twin in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, twin)
        state, twins = optimizer.state[weight], other_optimizer.state[twin]
        assert state.keys() == twins.keys()
        for name, value in state.items():
            assert value is twins[name] is None or torch.equal(value, twins[name])


@EVERY
def test_steps_are_torchs_to_the_bit(optimizer_name, parts):
    plain, attached = make(optimizer_name), make(optimizer_name, [NEUTRAL])
    for number in range(4):
        step(*plain[:2], number)
        step(*attached[:2], number)
        check_same(*plain[:2], *attached[:2])
    assert len(parts) >= 6  # two for each step but perhaps the first, which makes the state


@given(
    optimizer_name=some.sampled_from(list(OPTIMIZERS)),
    shape=some.tuples(some.integers(5, 40), some.integers(1, 40)),
    piece=some.integers(1, 200),
)
def test_parts_of_any_size(optimizer_name, shape, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_step, "PIECE", piece)
        patch.setattr(scratch, "PIECE", piece)
        plain, attached = make(optimizer_name, shape=shape), make(optimizer_name, [NEUTRAL], shape)
        for number in range(3):
            step(*plain[:2], number)
            step(*attached[:2], number)
        check_same(*plain[:2], *attached[:2])


@EVERY
def test_updates_are_scaled(optimizer_name, parts):
    mechanisms = [bouton.PlasticityDiversity(nu=0.5), bouton.Crystallization(threshold=0.5)]
    plain, attached = make(optimizer_name), make(optimizer_name, mechanisms)
    step(*plain[:2], 0)
    step(*attached[:2], 0)
    weight, twin = attached[0][0].weight, plain[0][0].weight
    with torch.no_grad():
        twin.copy_(weight)  # so that both start the step alike
    before, taken = weight.detach().clone(), len(parts)
    step(*plain[:2], 1)
    step(*attached[:2], 1)
    assert len(parts) >= taken + 2
    states = attached[2].state_dict()["claims"]
    deviation, rate = (states[f"{type(m).__name__}/0.weight"]["tensors"][0] for m in mechanisms)
    product = rate["rate"] * (1 + 0.5 * deviation["deviation"].float())
    assert 0.3 < rate["rate"].mean() < 0.9
    expected = before + product * (twin - before)
    torch.testing.assert_close(weight.detach(), expected.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["pre", "post"])
@EVERY
def test_hooks_of_others_find_everything(optimizer_name, kind, when, parts):
    found = []

    def hook(optimizer, *_):
        weight = optimizer.param_groups[0]["params"][0]
        found.append((weight.grad.clone(), weight.detach().clone()))
        if kind == "pre":
            weight.grad.clamp_(-0.1, 0.1)

    runs = []
    for mechanisms in ((), [NEUTRAL]):
        model, optimizer, _ = make(optimizer_name, mechanisms if when == "before" else ())
        getattr(optimizer, f"register_step_{kind}_hook")(hook)
        if when == "after" and mechanisms:
            bouton.attach(model, optimizer, mechanisms, readout=())
        for number in range(3):
            step(model, optimizer, number)
        runs.append((model, optimizer))
    check_same(*runs[0], *runs[1])
    for one, other in zip(found[:3], found[3:], strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("optimizer_name", ["momentum", "adamw"])
def test_gradients_are_there_after_a_step(optimizer_name, parts):
    model, optimizer, _ = make(optimizer_name, [NEUTRAL])
    for number in range(3):
        step(model, optimizer, number)
        generator = torch.Generator().manual_seed(number)
        for weight in model.parameters():
            assert torch.equal(weight.grad, torch.randn(weight.shape, generator=generator))
    assert parts


@EVERY
def test_closures_make_gradients_within_the_step(optimizer_name):
    runs = []
    for mechanisms in ((), [NEUTRAL]):
        model, optimizer, _ = make(optimizer_name, mechanisms)
        for number in range(3):

            def closure(model=model, optimizer=optimizer, number=number):
                optimizer.zero_grad()
                generator = torch.Generator().manual_seed(number)
                loss = model[0](torch.randn(2, 401, generator=generator)).square().mean()
                loss = loss + model[1](torch.randn(2, 3, generator=generator)).square().mean()
                loss.backward()
                return loss

            closure()  # so that there are gradients before the step, too
            optimizer.step(closure)
        runs.append((model, optimizer))
    check_same(*runs[0], *runs[1])


@pytest.mark.parametrize("mechanism", [NEUTRAL, bouton.PlasticityDiversity()])
@pytest.mark.parametrize("optimizer_name", ["momentum", "adamw"])
def test_a_graph_from_before_a_step_is_refused_as_by_torch(optimizer_name, mechanism):
    model, optimizer, _ = make(optimizer_name, [mechanism])
    step(model, optimizer, 0)
    loss = model[0](torch.ones(1, 401, requires_grad=True)).sum()
    step(model, optimizer, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_gradient_is_kept():
    model, optimizer, _ = make("adamw", [NEUTRAL])
    step(model, optimizer, 0)
    step(model, optimizer, 1)
    gradient = weakref.ref(model[0].weight.grad)
    optimizer.zero_grad()
    assert gradient() is None


def test_a_step_that_failed_leaves_no_gradient_to_the_next(parts):
    model, optimizer, _ = make("adamw", [NEUTRAL])
    step(model, optimizer, 0)
    exponent = optimizer.state[model[1].weight].pop("exp_avg")
    with pytest.raises(KeyError):
        step(model, optimizer, 1)
    optimizer.state[model[1].weight]["exp_avg"] = exponent
    before = model[0].weight.detach().clone()
    optimizer.zero_grad()
    with pytest.warns(UserWarning, match="gradient of then is lost"):
        optimizer.step()
    assert model[0].weight.grad is None and torch.equal(model[0].weight, before)
    taken = len(parts)
    step(model, optimizer, 2)
    assert len(parts) == taken + 2


def check_neutral(build, make_optimizer):
    """Three steps are the same with and without a mechanism."""
    runs = []
    for mechanisms in ((), [NEUTRAL]):
        torch.manual_seed(0)
        model = build()
        optimizer = make_optimizer(model.parameters())
        if mechanisms:
            bouton.attach(model, optimizer, mechanisms, readout=())
        for number in range(3):
            step(model, optimizer, number)
        runs.append((model, optimizer))
    check_same(*runs[0], *runs[1])


@EVERY
def test_a_model_of_large_weights_alone(optimizer_name):
    check_neutral(lambda: nn.Linear(600, 500, bias=False), OPTIMIZERS[optimizer_name])


def grads(model):
    return [weight.grad for weight in model.parameters()]


class Failing(bouton.Mechanism):
    site = "rate"
    rowwise = True
    fails = False
    after = 0  # so many synapses

    def rule(self, synapses):
        if type(self).fails and synapses.start >= type(self).after:
            raise RuntimeError("no rate")
        return torch.ones_like(synapses.weight)


@pytest.fixture
def two_large():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(600, 500, bias=False), nn.Linear(500, 600, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer


def test_a_rule_that_fails_loses_no_gradient(two_large, monkeypatch, parts):
    model, optimizer = two_large
    bouton.attach(model, optimizer, [Failing()], readout=())
    step(model, optimizer, 0)
    assert len(parts) == 4
    monkeypatch.setattr(Failing, "fails", True)
    with pytest.raises(RuntimeError, match="no rate"):
        step(model, optimizer, 1)
    assert None not in grads(model)
    monkeypatch.setattr(Failing, "fails", False)
    before = model[1].weight.detach().clone()
    assert len(parts) == 7  # two pieces and a whole weight, without rates
    optimizer.step(lambda: None)  # with a closure, and so not in parts
    assert len(parts) == 7
    torch.testing.assert_close(model[1].weight, before - 0.1 * model[1].weight.grad)


@pytest.mark.parametrize("after", [0, 1000])
@pytest.mark.parametrize("optimizer_name", ["momentum", "adamw"])
def test_a_rule_that_fails_keeps_no_weight_from_its_step(optimizer_name, after, monkeypatch):
    monkeypatch.setattr(Failing, "after", after)
    runs = []
    for mechanisms in ((), [Failing()]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 600), nn.Linear(600, 500))
        optimizer = OPTIMIZERS[optimizer_name](model.parameters())
        if mechanisms:
            bouton.attach(model, optimizer, mechanisms, readout=())
        step(model, optimizer, 0)
        monkeypatch.setattr(Failing, "fails", True)
        with pytest.raises(RuntimeError, match="no rate") if mechanisms else contextlib.nullcontext():
            step(model, optimizer, 1)
        monkeypatch.setattr(Failing, "fails", False)
        step(model, optimizer, 2)
        runs.append((model, optimizer))
    check_same(*runs[0], *runs[1])


def test_a_gradient_that_was_lost_is_told_of_where_gradients_add_up():
    model, optimizer, _ = make("momentum", [NEUTRAL])
    step(model, optimizer, 0)
    step(model, optimizer, 1)
    optimizer.param_groups[0]["lr"] = "none"
    with pytest.raises(TypeError):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    with pytest.warns(UserWarning, match="gradient of then is lost"):
        step(model, optimizer, 2)


def test_a_step_that_cannot_begin_loses_no_gradient(two_large):
    model, optimizer = two_large
    bouton.attach(model, optimizer, [NEUTRAL], readout=())
    optimizer.param_groups[0]["params"].pop()
    with pytest.raises(ValueError, match="no longer among the optimizer's parameters"):
        step(model, optimizer, 0)
    assert None not in grads(model)


def test_a_pause_within_a_step_comes_after_it(two_large):
    model, optimizer = two_large
    handle = bouton.attach(model, optimizer, [NEUTRAL], readout=())
    pauses, before = [], model[0].weight.detach().clone()
    change = optimizer._init_group

    def pausing(*arguments):
        pauses.append(handle.paused())
        pauses[-1].__enter__()
        return change(*arguments)

    optimizer._init_group = pausing
    step(model, optimizer, 0)
    assert pauses and None not in grads(model)
    assert not torch.equal(model[0].weight, before)


class Clipping(bouton.fused.AdamW):
    def step(self, closure=None):
        nn.utils.clip_grad_norm_([weight for group in self.param_groups for weight in group["params"]], 0.1)
        return super().step(closure)


def test_subclasses_of_fused_optimizers_find_every_gradient():
    check_neutral(lambda: nn.Sequential(nn.Linear(600, 500, bias=False), nn.Linear(3, 2)), Clipping)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("shape", [(600, 500), (6, 5)])
def test_a_weight_that_is_listed_twice_is_stepped_twice(shape):
    torch.manual_seed(0)
    plain, model = nn.Linear(*shape, bias=False), nn.Linear(*shape, bias=False)
    model.load_state_dict(plain.state_dict())
    before = model.weight.detach().clone()
    optimizers = [torch.optim.SGD([m.weight, m.weight], lr=0.1) for m in (plain, model)]
    handle = bouton.attach(model, optimizers[1], [bouton.PlasticityDiversity(nu=0.5)], readout=())
    step(plain, optimizers[0], 0)
    step(model, optimizers[1], 0)
    (claim,) = handle.state_dict()["claims"].values()
    rate = 1 + 0.5 * claim["tensors"][0]["deviation"].float()
    expected = before + rate * (plain.weight - before)
    torch.testing.assert_close(model.weight.detach(), expected.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_meet_in_one_order(two_large, processes, monkeypatch, parts):
    """All surveys for which they meet come before the step, whichever weights have a gradient."""
    model, optimizer = two_large
    monkeypatch.setattr(hook, "process_count", lambda: processes)
    bouton.attach(model, optimizer, [bouton.PlasticityDiversity(distribution="activity")], readout=())
    step(model, optimizer, 0)
    assert len(parts) == (4 if processes == 1 else 0)
