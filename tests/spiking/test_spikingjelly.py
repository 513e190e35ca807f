"""Every registered mechanism on nets of spikingjelly, step by step and with all time steps in one call."""

import copy
import functools
import math

import pytest
import torch
from oracle import Neuron, assert_gradients_agree, gradients_by_hand
from spiking_nets import BATCH, CLASSES, INPUTS, TIME, batch
from torch import nn

import bouton

pytest.importorskip("spikingjelly")
from spikingjelly.activation_based import functional, layer, neuron, surrogate

NEUTRAL, EXAMPLES = (
    {
        f"{name}-{number}": mechanism
        for name, entry in bouton.registry().items()
        for number, mechanism in enumerate(getattr(entry, kind))
    }
    for kind in ("neutral", "examples")
)


def spiking(**settings):
    return neuron.LIFNode(tau=2.0, v_threshold=0.2, surrogate_function=surrogate.ATan(), **settings)


def dense():
    return nn.Sequential(
        layer.Linear(INPUTS, 16),
        spiking(),
        layer.Linear(16, 8),
        neuron.ParametricLIFNode(v_threshold=0.2),
        layer.Linear(8, CLASSES),
        neuron.IFNode(),
    )


def convolutional():
    return nn.Sequential(
        layer.Conv2d(1, 6, 3, padding=1, bias=False),
        layer.BatchNorm2d(6),
        spiking(),
        layer.MaxPool2d(2),
        layer.Conv2d(6, 4, 3),
        spiking(v_reset=None, detach_reset=True),
        layer.Flatten(),
        layer.Linear(4, CLASSES),
        spiking(),
    )


NETS = {"dense": dense, "convolutional": convolutional}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}
over_nets = pytest.mark.parametrize("net_name", NETS)
over_modes = pytest.mark.parametrize("mode", ["s", "m"])
over_optimizers = pytest.mark.parametrize("optimizer_name", OPTIMIZERS)


def build(net_name, mode, optimizer_name="sgd"):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        net = NETS[net_name]()
    functional.set_step_mode(net, mode)
    return net, OPTIMIZERS[optimizer_name](net.parameters())


def train(net, optimizer, steps):
    for number in range(steps):
        x, y = batch(number)
        if isinstance(net[0], nn.Conv2d):
            x = x.reshape(TIME, BATCH, 1, 6, 6)
        functional.reset_net(net)
        optimizer.zero_grad()
        fired = net(x) if net[0].step_mode == "m" else torch.stack([net(now) for now in x])
        nn.functional.cross_entropy(fired.sum(0), y).backward()
        optimizer.step()
    functional.reset_net(net)
    return {name: value.clone() for name, value in net.state_dict().items()}


@functools.cache
def plainly_trained(net_name, mode, optimizer_name):
    return train(*build(net_name, mode, optimizer_name), steps=3)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@over_nets
@over_modes
@over_optimizers
@pytest.mark.parametrize("mechanism", NEUTRAL.values(), ids=NEUTRAL)
def test_zero_strength_leaves_every_bit(mechanism, optimizer_name, mode, net_name):
    plain = plainly_trained(net_name, mode, optimizer_name)
    net, optimizer = build(net_name, mode, optimizer_name)
    bouton.attach(net, optimizer, [mechanism])
    assert same(train(net, optimizer, steps=3), plain)


@over_nets
@over_modes
@pytest.mark.parametrize("mechanism", EXAMPLES.values(), ids=EXAMPLES)
def test_trains_and_comes_off(mechanism, mode, net_name):
    optimizer_name = "adamw"
    plain = plainly_trained(net_name, mode, optimizer_name)
    net, optimizer = build(net_name, mode, optimizer_name)
    handle = bouton.attach(net, optimizer, [mechanism])
    assert len(handle.report().rows) == 3
    trained = train(net, optimizer, steps=3)
    assert all(value.isfinite().all() for value in trained.values())
    assert not same(trained, plain)
    other, other_optimizer, _ = copy.deepcopy((net, optimizer, handle))
    assert same(train(net, optimizer, steps=1), train(other, other_optimizer, steps=1))

    handle.detach()
    fresh, fresh_optimizer = build(net_name, mode, optimizer_name)
    fresh.load_state_dict(net.state_dict())
    fresh_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert same(train(net, optimizer, steps=1), train(fresh, fresh_optimizer, steps=1))


@over_modes
@pytest.mark.parametrize("grapes", [None, bouton.Grapes(), bouton.Grapes(clip=None)])
def test_gradients_equal_the_oracle(grapes, mode):
    tau, threshold, alpha = 4.0, 0.7, 3.0
    nodes = {"tau": tau, "v_threshold": threshold, "surrogate_function": surrogate.ATan(alpha)}
    nodes |= {"decay_input": False, "v_reset": None, "detach_reset": True}
    net = nn.Sequential(
        layer.Linear(8, 10), neuron.LIFNode(**nodes), layer.Linear(10, 5), neuron.LIFNode(**nodes)
    ).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    functional.set_step_mode(net, mode)
    x, y = 2 * torch.rand(5, 4, 8, dtype=torch.float64), torch.randint(5, (4,))
    if grapes:
        bouton.attach(net, None, [grapes])
    fired = net(x) if mode == "m" else torch.stack([net(now) for now in x])
    nn.functional.cross_entropy(fired.sum(0), y).backward()
    assert 0.1 < fired.detach().mean() < 0.9
    beta = 1 - 1 / tau
    by_hand = Neuron(
        beta,
        threshold,
        drop=beta * threshold,  # taken off before the leak, in snntorch after it
        slope=lambda u: alpha / 2 / (1 + (math.pi / 2 * alpha * u) ** 2),
    )
    assert_gradients_agree(gradients_by_hand([[net[0]], [net[2]]], grapes, by_hand, x, y, "spikes"))
