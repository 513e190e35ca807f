"""Weights that are computed at each access: weight_norm, spectral_norm, orthogonal, and several at once."""

import copy
import warnings

import oracles
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import bouton


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


class LowRank(nn.Module):
    """A weight made of two narrow ones."""

    def forward(self, left, right):
        return left @ right

    def right_inverse(self, weight):
        return weight[:, :1].clone(), weight[:1].clone()


def doubly(layer):
    parametrizations.weight_norm(layer)
    parametrize.register_parametrization(layer, "weight", Doubled())


def normed_and_doubled(layer):
    parametrizations.spectral_norm(layer)
    parametrize.register_parametrization(layer, "weight", Doubled())


def old(function):
    def change(layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            function(layer)

    return change


ORIGINAL, DIRECTION = "parametrizations.weight.original", "parametrizations.weight.original1"
CHANGES = {
    "weight_norm": (parametrizations.weight_norm, DIRECTION),
    "weight_norm of the whole": (lambda layer: parametrizations.weight_norm(layer, dim=None), DIRECTION),
    "spectral_norm": (parametrizations.spectral_norm, ORIGINAL),
    "orthogonal": (parametrizations.orthogonal, ORIGINAL),
    "orthogonal, cayley": (
        lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley", use_trivialization=False),
        ORIGINAL,
    ),
    "weight_norm and another": (doubly, DIRECTION),
    "spectral_norm and another": (normed_and_doubled, ORIGINAL),
    "old weight_norm": (old(torch.nn.utils.weight_norm), "weight_v"),
    "old spectral_norm": (old(torch.nn.utils.spectral_norm), "weight_orig"),
}
over_changes = pytest.mark.parametrize(("change", "stored"), CHANGES.values(), ids=CHANGES)
LAYERS = {
    "linear": lambda: (nn.Linear(6, 5), nn.Identity()),
    "convolution": lambda: (nn.Conv2d(6, 5, 2), nn.Flatten()),
    "transposed": lambda: (nn.ConvTranspose1d(6, 5, 2), nn.Flatten()),
}
over_layers = pytest.mark.parametrize("layer_name", LAYERS)


def build(layer_name, change):
    torch.manual_seed(0)
    layer, flatten = LAYERS[layer_name]()
    change(layer)
    # in the places of a hidden layer; the convolutions find 2 positions a side
    head = nn.Linear({"linear": 5, "convolution": 20, "transposed": 15}[layer_name], 2)
    return nn.Sequential(layer, nn.Tanh(), flatten, head).double()


def batch(net, seed=0):
    sizes = {nn.Linear: (), nn.Conv2d: (3, 3), nn.ConvTranspose1d: (2,)}
    (size,) = [size for kind, size in sizes.items() if isinstance(net[0], kind)]
    return torch.randn(4, 6, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def backward(net, seed=0):
    net.zero_grad()
    nn.functional.cross_entropy(net(batch(net, seed)), torch.arange(4) % 2).backward()


def weight_of(layer):
    """The weight of the last forward pass, whose power iteration must not go on."""
    training = layer.training
    layer.eval()
    weight = layer.weight.detach().clone()
    layer.train(training)
    return weight


def parameter(net, stored):
    return net.get_parameter(f"0.{stored}")


def train(net, mechanisms, look=False):
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    handle = bouton.attach(net, optimizer, mechanisms) if mechanisms else None
    for step in range(5):
        backward(net, step)
        optimizer.step()
        if look:
            handle.stats(), handle.report(), handle.state_dict()
    return {name: value.clone() for name, value in net.state_dict().items()}


@over_layers
@over_changes
def test_zero_strength_leaves_every_bit(layer_name, change, stored):
    plain = train(build(layer_name, change), [])
    neutral = [entry.neutral[0] for entry in bouton.registry().values() if entry.cls.site != "structure"]
    found = train(build(layer_name, change), neutral, look=True)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)


@over_changes
def test_no_look_goes_on_with_a_power_iteration(change, stored):
    net = build("linear", change)
    backward(net)
    before = {name: value.clone() for name, value in net[0].state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    handle = bouton.attach(net, optimizer, [bouton.VolumePlasticity(), bouton.Grapes(mode="local")])
    bouton.find_groups(net)
    handle.stats()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in net[0].state_dict().items())
    assert all(module.training for module in net.modules())


@over_layers
@over_changes
def test_the_propagated_factor_is_that_of_the_weight_in_use(layer_name, change, stored):
    net = build(layer_name, change)
    twin = build(layer_name, change)
    bouton.attach(net, None, [bouton.Grapes(clip=None)])
    backward(net), backward(twin)
    weight = weight_of(net[0])
    nodes = weight.transpose(0, 1) if layer_name == "transposed" else weight
    factor = oracles.responsibility(nodes, None, False)
    expected = twin[0].bias.grad * weight.new_tensor(factor)
    torch.testing.assert_close(net[0].bias.grad, expected, rtol=1e-10, atol=1e-13)


@over_layers
@over_changes
def test_rates_scale_the_update_of_what_is_stored(layer_name, change, stored):
    net, twin = build(layer_name, change), build(layer_name, change)
    optimizer, plain = (torch.optim.AdamW(other.parameters(), lr=0.01) for other in (net, twin))
    report = bouton.attach(net, optimizer, [bouton.Grapes(mode="local", clip=None)]).report()
    assert report.rows[0].weight == f"0.{stored}" and report.rows[0].left_because is None
    backward(net), backward(twin)
    weight = weight_of(net[0])
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    optimizer.step(), plain.step()
    axis = 1 if layer_name == "transposed" else 0
    rate = weight.new_tensor(oracles.responsibility(weight.transpose(0, axis), None, False))
    rate = rate.reshape([-1 if axis == other else 1 for other in range(weight.ndim)])
    for name, old_value in before.items():
        update = twin.get_parameter(name).detach() - old_value
        own = rate * update if name == f"0.{stored}" else update
        torch.testing.assert_close(net.get_parameter(name).detach() - old_value, own, rtol=1e-9, atol=1e-13)
    assert not torch.allclose(rate, torch.ones_like(rate))


@over_changes
def test_structure_is_refused(change, stored):
    for mechanism in (bouton.SpineRemodeling(), bouton.DalePrinciple()):
        net = nn.Sequential(build("linear", change), nn.Linear(2, 2), nn.Linear(2, 2))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        row = bouton.attach(net, optimizer, [mechanism]).report().rows[0]
        assert "computed from other parameters, so that no single synapse can be set" in row.left_because


@over_changes
def test_checkpoints_and_detaching(change, stored):
    net, plain = build("linear", change), build("linear", change)
    attributes = {path: set(module.__dict__) for path, module in net.named_modules()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = bouton.attach(net, optimizer, [bouton.Grapes(), bouton.PlasticityDiversity()])
    assert list(net.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(net.state_dict(), strict=True)
    net.load_state_dict(plain.state_dict(), strict=True)
    handle.detach()
    assert {path: set(module.__dict__) for path, module in net.named_modules()} == attributes
    assert not net[0]._forward_hooks


@pytest.mark.parametrize("name", [name for name in CHANGES if not name.startswith("old")])
def test_copies_are_copies(name):
    # torch copies no layer of the older kind once it has run: its weight is no leaf
    change, _ = CHANGES[name]
    net = build("linear", change)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = bouton.attach(net, optimizer, [bouton.Grapes(), bouton.PlasticityDiversity(nu=0.5)])
    backward(net)
    other, other_optimizer, other_handle = copy.deepcopy((net, optimizer, handle))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    backward(other)
    other_optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    backward(net)
    optimizer.step()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in net.state_dict().items())
    other_handle.detach()
    assert handle.stats()


@pytest.mark.parametrize("name", [name for name in CHANGES if not name.startswith("old")])
def test_a_look_under_a_cache_leaves_gradients_alone(name):
    change, _ = CHANGES[name]
    net, twin = build("linear", change), build("linear", change)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with parametrize.cached():
        handle = bouton.attach(net, optimizer, [bouton.Grapes(clip=None), bouton.VolumePlasticity()])
        handle.stats()
        backward(net)
        found = [value.grad.clone() for value in net.parameters()]
        optimizer.step()
    bouton.attach(twin, None, [bouton.Grapes(clip=None)])
    backward(twin)
    for ours, expected in zip(found, twin.parameters(), strict=True):
        torch.testing.assert_close(ours, expected.grad, rtol=1e-12, atol=1e-14)


def test_what_else_a_weight_is_computed_from_is_named():
    net = build("linear", parametrizations.weight_norm)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    report = bouton.attach(net, optimizer, [bouton.PlasticityDiversity()]).report()
    assert report.others == ("0.parametrizations.weight.original0 (5, 1)",)
    assert "a part of a computed weight" in str(report)


def test_a_weight_made_of_smaller_ones_is_named():
    net = build("linear", lambda layer: parametrize.register_parametrization(layer, "weight", LowRank()))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    report = bouton.attach(net, optimizer, [bouton.PlasticityDiversity()]).report()
    assert [row.weight for row in report.rows] == ["3.weight"]
    assert [name.partition(" ")[0] for name in report.others] == [
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
    ]


def test_parametrising_and_unparametrising_while_attached_are_errors():
    for change in (
        parametrizations.spectral_norm,
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    ):
        net = build("linear", parametrizations.weight_norm)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        if change is parametrizations.spectral_norm:
            net = build("linear", lambda layer: None)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        bouton.attach(net, optimizer, [bouton.PlasticityDiversity()])
        change(net[0])
        with pytest.raises(ValueError, match="is another parameter than at"):
            optimizer.step()


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell], ids=lambda kind: kind.__name__)
def test_a_cell_whose_recurrent_weight_is_normed(kind):
    def cells():
        torch.manual_seed(0)
        net = nn.ModuleDict({"cell": kind(3, 4), "head": nn.Linear(4, 2)}).double()
        parametrizations.spectral_norm(net["cell"], "weight_hh")
        return net

    def gradients(net):
        states, x = None, torch.ones(2, 3, dtype=torch.float64)
        for _ in range(3):
            states = net["cell"](x, states)
        output = states[0] if kind is nn.LSTMCell else states
        net["head"](output).square().sum().backward()
        return {name: value.grad for name, value in net.named_parameters()}

    net, plain = cells(), cells()
    bouton.attach(net, None, [bouton.Grapes(clip=(1.0, 1.0))])
    gradients(net), gradients(plain)
    for name, value in plain.state_dict().items():
        assert torch.equal(net.state_dict()[name], value)  # its vectors, too
    for (name, value), other in zip(net.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(value.grad, other.grad), name
