"""The rate and the structure site: what happens around an optimizer's step."""

import copy

import oracles
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import bouton
from bouton.step import snapshot


class Slow(bouton.Mechanism):
    site = "rate"

    def rule(self, synapses):
        return torch.full_like(synapses.weight, 0.5)


class Negated(bouton.Mechanism):
    """Changes the synapses with a positive gradient."""

    site = "structure"
    reset_moments = False

    def rule(self, synapses):
        return synapses.gradient > 0, -synapses.weight


def backward(layer):
    layer(
        torch.randn(3, layer.weight.shape[layer.weight.ndim != 3], *[4] * (layer.weight.ndim - 2))
    ).square().sum().backward()


class Decayed(torch.optim.SGD):
    """A subclass with a step around its parent's, as users write them."""

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.mul_(0.9)
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.add_(0.01)
        return loss


def test_a_step_within_a_step_is_one_step():
    torch.optim.SGD([torch.zeros(1)], lr=0.1)  # from now on torch hooks the parent's step, too
    layer, plain = nn.Linear(5, 4), nn.Linear(5, 4)
    plain.load_state_dict(layer.state_dict())
    optimizer, reference = Decayed(layer.parameters(), lr=0.1), Decayed(plain.parameters(), lr=0.1)
    handle = bouton.attach(layer, optimizer, [Slow(), bouton.SpineRemodeling(every=2)])
    before = layer.weight.detach().clone()

    def fails():
        raise RuntimeError("no loss today")

    with pytest.raises(RuntimeError, match="no loss today"):
        optimizer.step(fails)
    with torch.no_grad():
        layer.weight.copy_(before)  # as from a checkpoint, after the failure
    layer.weight.grad, plain.weight.grad = torch.ones(4, 5), torch.ones(4, 5)
    optimizer.step(), reference.step()
    torch.testing.assert_close(layer.weight.detach(), (before + plain.weight.detach()) / 2)
    assert handle.stats()["SpineRemodeling"]["weight"]["events"] == 0
    optimizer.step()
    assert handle.stats()["SpineRemodeling"]["weight"]["events"] == 1


def announced(method):
    def wrapper(self):
        return method(self)

    return wrapper


class Announced(torch.optim.SGD):
    """A subclass with a decorated method around the step, as users write them."""

    @announced
    def step_and_forget(self):
        self.step(), self.zero_grad()


def test_after_a_failure_a_step_within_a_decorated_method_is_a_step():
    layer = nn.Linear(5, 4)
    optimizer = Announced(layer.parameters(), lr=0.1)
    handle = bouton.attach(layer, optimizer, [Slow()])

    def fails():
        raise RuntimeError("no loss today")

    with pytest.raises(RuntimeError, match="no loss today"):
        optimizer.step(fails)
    for _ in range(3):
        backward(layer)
        optimizer.step_and_forget()
    assert [claim["step"] for claim in handle.state_dict()["claims"].values()] == [3]


def test_every_mechanism_counts_every_step():
    layer = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle = bouton.attach(layer, optimizer, [Slow(), bouton.SpineRemodeling()])
    for _ in range(3):
        backward(layer)
        optimizer.step()
    assert [claim["step"] for claim in handle.state_dict()["claims"].values()] == [3, 3]


@pytest.mark.parametrize("layer", [nn.Linear(4, 6), nn.ConvTranspose1d(4, 6, 3, groups=2)], ids=str)
def test_structure_sees_nodes_first_and_writes_back_in_place(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    bouton.attach(layer, optimizer, [Negated()])
    before = layer.weight.detach().clone()
    backward(layer)
    positive = layer.weight.grad > 0
    optimizer.step()
    assert torch.equal(layer.weight.detach(), torch.where(positive, -before, before))


def test_weights_frozen_since_attach_and_weights_without_a_gradient_stay():
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30), nn.Linear(30, 30))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = bouton.attach(model, optimizer, [bouton.SpineRemodeling(every=1), Slow()])
    model(torch.randn(4, 30)).sum().backward()
    model[0].requires_grad_(False)
    model[1].weight.grad = None
    before = copy.deepcopy(model)
    optimizer.step()
    model[0].weight.grad = None
    assert torch.equal(before[1].weight, model[1].weight)
    frozen = model[0].weight.detach().clone()
    handle.remodel()
    assert torch.equal(frozen, model[0].weight)
    assert handle.stats()["SpineRemodeling"]["0.weight"]["events"] == 0


def test_a_step_that_a_fused_optimizer_skips_changes_nothing():
    layer = nn.Linear(30, 30)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)
    bouton.attach(layer, optimizer, [bouton.SpineRemodeling(every=1), bouton.PlasticityDiversity()])
    layer(torch.randn(4, 30)).sum().backward()
    before = layer.weight.detach().clone()
    # what torch.amp.GradScaler hands to a fused optimizer
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.ones(())
    optimizer.step()
    assert torch.equal(before, layer.weight)
    del optimizer.grad_scale, optimizer.found_inf
    optimizer.step()
    assert not torch.equal(before, layer.weight)


def test_a_skipped_step_leaves_the_mechanisms_state():
    layer = nn.Linear(5, 4)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
    handle = bouton.attach(layer, optimizer, [bouton.Crystallization()])
    layer.weight.grad = torch.zeros(4, 5)  # far below the threshold
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.ones(())
    optimizer.step()
    assert handle.stats()["Crystallization"]["weight"]["min"] == 1
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert handle.stats()["Crystallization"]["weight"]["max"] == pytest.approx(0.6)


def test_the_state_moves_to_the_weights_device_before_a_skipped_step():
    layer = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle = bouton.attach(layer, optimizer, [bouton.Crystallization()])
    ((_, claim),) = handle._claims
    weight = layer.weight.detach().to("meta")  # a second device that every machine has
    rate = claim.rate(weight, weight, skipped=torch.zeros((), device="meta"))
    assert rate.device == claim.memory.states[0]["rate"].device == weight.device


def test_weights_that_lead_into_the_same_nodes_are_copied_once(monkeypatch):
    model = nn.LSTM(3, 4)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.1)
    bouton.attach(model, optimizer, [bouton.Grapes(mode="local", where="")], readout=())
    copied = []
    read = snapshot.read_weight
    monkeypatch.setattr(
        snapshot, "read_weight", lambda layer, name: copied.append(name) or read(layer, name)
    )
    optimizer.step()
    assert sorted(copied) == ["weight_hh_l0", "weight_ih_l0"]


def test_a_weight_that_another_attachment_holds_through_a_tie_is_refused():
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bouton.attach(model[0], optimizer, [Slow()])
    with pytest.raises(ValueError, match="weight is attached already, through another layer that shares"):
        bouton.attach(model[1], optimizer, [bouton.SpineRemodeling()])


def replaced(layer):
    layer.weight = nn.Parameter(layer.weight.detach().clone())


def assigned(layer):
    layer.load_state_dict({k: v.clone() for k, v in layer.state_dict().items()}, assign=True)


@pytest.mark.parametrize(
    "change",
    [
        replaced,
        assigned,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        parametrizations.weight_norm,
    ],
)
@pytest.mark.parametrize(
    "mechanism",
    [
        bouton.PlasticityDiversity(),
        bouton.PlasticityDiversity(scope="gradient"),
        bouton.SpineRemodeling(every=5),
    ],
    ids=str,
)
def test_a_weight_that_was_replaced_since_attach_is_an_error(change, mechanism):
    layer = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle = bouton.attach(layer, optimizer, [mechanism])
    change(layer)
    with handle.paused():
        optimizer.step()
    with pytest.raises(ValueError, match=r"weight is another parameter than at bouton.attach"):
        optimizer.step()
    if mechanism.site == "structure":
        with pytest.raises(ValueError, match="weight is another parameter"):
            handle.remodel()


def test_several_parameter_groups():
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    groups = [
        {"params": model[0].parameters(), "lr": 0.5},
        {"params": model[1].parameters()},
    ]
    optimizer = torch.optim.Rprop(groups, lr=0.01)  # its step sizes start at the learning rate
    handle = bouton.attach(model, optimizer, [bouton.SpineRemodeling(d_re=2.0)])
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 20)).sum().backward()
        optimizer.step()
    before = [layer.weight.detach().clone() for layer in model]
    handle.remodel()
    for layer, old, fresh in zip(model, before, (0.5, 0.01), strict=True):
        changed = layer.weight != old
        sizes = optimizer.state[layer.weight]["step_size"]
        assert changed.any()
        assert (sizes[changed] == torch.tensor(fresh)).all()
        assert (sizes[~changed] != torch.tensor(fresh)).all()


def test_gradient_scope_scales_what_accumulates_and_what_autograd_gives():
    layer, plain = nn.Linear(5, 4), nn.Linear(5, 4)
    plain.load_state_dict(layer.state_dict())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle = bouton.attach(layer, optimizer, [bouton.PlasticityDiversity(scope="gradient")])
    rate = oracles.rates_of(handle.state_dict()["claims"]["PlasticityDiversity/weight"]["tensors"][0], 0.16)
    batches = torch.randn(3, 8, 5)
    for x in batches:  # three micro-batches
        layer(x).square().sum().backward()
        plain(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, rate * plain.weight.grad)
    with handle.paused():
        x = batches[0]
        found = torch.autograd.grad(layer(x).sum(), layer.weight)[0]
        assert torch.equal(found, torch.autograd.grad(plain(x).sum(), plain.weight)[0])


def test_a_gradient_rule_sees_the_gradient_that_it_scales():
    class Signed(bouton.Mechanism):
        site = "rate"
        scope = "gradient"

        def rule(self, synapses):
            return (synapses.gradient > 0).float()

    layer = nn.Linear(5, 4)
    plain = torch.autograd.grad(layer(torch.ones(2, 5)).prod(1).sum(), layer.weight)[0]
    bouton.attach(layer, torch.optim.SGD(layer.parameters(), lr=0.1), [Signed()])
    for _ in range(2):  # the second time there is a gradient of before
        layer(torch.ones(2, 5)).prod(1).sum().backward()
    assert torch.equal(layer.weight.grad, 2 * plain.clamp(min=0))


def test_state_is_no_view_of_the_weight():
    class Start(bouton.Mechanism):
        site = "rate"

        def prepare(self, synapses):
            return {"start": synapses.weight}

        def rule(self, synapses):
            return torch.full_like(synapses.weight, 0.5)

    layer = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle = bouton.attach(layer, optimizer, [Start()])
    start = layer.weight.detach().clone()
    backward(layer)
    optimizer.step()
    assert torch.equal(handle.state_dict()["claims"]["Start/weight"]["tensors"][0]["start"], start)


def test_rates_of_another_precision_than_the_weights():
    layer = nn.Linear(40, 30)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle = bouton.attach(layer, optimizer, [bouton.PlasticityDiversity(nu=0.5)])
    layer.to(torch.bfloat16)
    before = layer.weight.detach().clone()
    layer(torch.randn(4, 40, dtype=torch.bfloat16)).square().sum().backward()
    optimizer.step()
    assert layer.weight.dtype == torch.bfloat16
    assert not torch.equal(before, layer.weight)
    handle.detach()
    bouton.attach(layer, optimizer, [bouton.PlasticityDiversity(nu=0.5)], seed=1)
    with pytest.raises(ValueError, match=r"nu=0.001 is below the resolution of torch.bfloat16, 0.008"):
        bouton.detach(layer)
        bouton.attach(layer, optimizer, [bouton.PlasticityDiversity(nu=0.001)])


def test_handles_have_no_shallow_copy():
    layer = nn.Linear(5, 4)
    handle = bouton.attach(layer, torch.optim.SGD(layer.parameters(), lr=0.1), [Slow()])
    with pytest.raises(ValueError, match="no shallow copy"):
        copy.copy(handle)


def test_a_model_that_holds_its_own_handle_is_copied():
    layer = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer.handle = bouton.attach(layer, optimizer, [bouton.PlasticityDiversity(scope="gradient")])
    other = copy.deepcopy(layer)
    x = torch.randn(3, 5)
    found = torch.autograd.grad(other(x).square().sum(), other.weight)[0]
    assert torch.equal(found, torch.autograd.grad(layer(x).square().sum(), layer.weight)[0])
