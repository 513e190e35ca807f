"""Gradients of spiking nets, plain and with Grapes, against a net written by hand without autograd."""

import itertools
import math

import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Neuron, assert_gradients_agree, gradients_by_hand
from snntorch import surrogate
from torch import nn

import bouton
from bouton.mechanisms.grapes import responsibility

STEPS = 5
GRAPES = {
    "plain": None,
    "clipped": bouton.Grapes(),
    "free": bouton.Grapes(clip=None),
    "normalized": bouton.Grapes(clip=None, normalize=True),
}


def in_double(function, parameter):
    """A surrogate of snntorch without its rounding of spikes to float32, which no float64 layer takes."""

    class InDouble(function):
        @staticmethod
        def forward(ctx, membrane, parameter):
            return function.forward(ctx, membrane, parameter).to(membrane.dtype)

    return lambda membrane: InDouble.apply(membrane, parameter)


SURROGATES = {  # snntorch's, and its derivative by hand
    "fast_sigmoid": (in_double(surrogate.FastSigmoid, 5), lambda u: 1 / (1 + 5 * abs(u)) ** 2),
    "atan": (in_double(surrogate.ATan, 3.0), lambda u: 1.5 / (1 + (math.pi / 2 * 3 * u) ** 2)),
}


class Net(nn.Module):
    """Linear layers, and Leaky or RLeaky neurons, in float64."""

    def __init__(self, sizes, surrogate_name, recurrent=False, read="membranes"):
        super().__init__()
        self.read = read
        spike_grad, self.slope = SURROGATES[surrogate_name]
        self.feeds, self.neurons = nn.ModuleList(), nn.ModuleList()
        for inputs, nodes in itertools.pairwise(sizes):
            self.feeds.append(nn.Linear(inputs, nodes))
            kind, own = (snn.RLeaky, {"linear_features": nodes}) if recurrent else (snn.Leaky, {})
            self.neurons.append(kind(beta=0.85, threshold=0.7, spike_grad=spike_grad, **own))
        last = len(self.feeds) - 1
        self.readouts = [f"feeds.{last}", *[f"neurons.{last}.recurrent"] * recurrent]
        self.double()
        for parameter in self.parameters():
            nn.init.normal_(parameter)  # large, so that nodes do spike

    def forward(self, x):
        states = [neuron.reset_mem() for neuron in self.neurons]  # RLeaky: spike and membrane
        states = [state if isinstance(state, tuple) else (state,) for state in states]
        total, self.fired = 0, []
        for signal in x:
            for place, (feed, neuron) in enumerate(zip(self.feeds, self.neurons, strict=True)):
                signal, membrane = neuron(feed(signal), *states[place])
                states[place] = (signal, membrane)[-len(states[place]) :]
                self.fired.append(float(signal.detach().mean()))
            total = total + (signal if self.read == "spikes" else membrane)
        return total

    def by_hand(self, x, y, grapes):
        linears = [
            [feed, neuron.recurrent] if isinstance(neuron, snn.RLeaky) else [feed]
            for feed, neuron in zip(self.feeds, self.neurons, strict=True)
        ]
        # what snntorch has of them, which is rounded to float32
        beta, threshold = float(self.neurons[0].beta), float(self.neurons[0].threshold)
        neuron = Neuron(beta, threshold, drop=threshold, slope=self.slope)
        return gradients_by_hand(linears, grapes, neuron, x, y, self.read)


def batch(sizes, samples):
    x = 2 * torch.rand(STEPS, samples, sizes[0], dtype=torch.float64)
    return x, torch.randint(sizes[-1], (samples,))


@pytest.mark.parametrize("grapes", GRAPES.values(), ids=GRAPES)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=3, max_size=4),
    samples=st.integers(1, 3),
    surrogate_name=st.sampled_from(sorted(SURROGATES)),
    recurrent=st.booleans(),
    read=st.sampled_from(["spikes", "membranes"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15)
def test_gradients_equal_the_oracle(grapes, sizes, samples, surrogate_name, recurrent, read, seed):
    torch.manual_seed(seed)
    net = Net(sizes, surrogate_name, recurrent, read)
    x, y = batch(sizes, samples)
    if grapes:
        bouton.attach(net, None, [grapes], readout=net.readouts)
    nn.functional.cross_entropy(net(x), y).backward()
    assert_gradients_agree(net.by_hand(x, y, grapes))


@pytest.mark.parametrize("grapes", GRAPES.values(), ids=GRAPES)
@pytest.mark.parametrize("surrogate_name", SURROGATES)
def test_two_layers_that_spike_over_five_steps(surrogate_name, grapes):
    sizes = (8, 10, 5)
    net = Net(sizes, surrogate_name)
    x, y = batch(sizes, samples=4)
    if grapes:
        bouton.attach(net, None, [grapes])
    nn.functional.cross_entropy(net(x), y).backward()
    assert_gradients_agree(net.by_hand(x, y, grapes))
    for layer in range(2):  # resets and surrogates were at work
        assert 0.1 < sum(net.fired[layer::2]) / STEPS < 0.9


def test_the_membrane_carries_errors_through_time_unmodulated():
    """One hidden layer without a loop: the factor acts once, however many steps there are."""
    sizes = (8, 10, 5)
    net = Net(sizes, "atan")
    x, y = batch(sizes, samples=4)
    plain = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), net.feeds[0].weight)[0]
    bouton.attach(net, None, [bouton.Grapes(clip=None)])
    found = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), net.feeds[0].weight)[0]
    factor = responsibility(net.feeds[0].weight.detach(), clip=None)
    torch.testing.assert_close(found, factor[:, None] * plain, rtol=1e-12, atol=1e-12)
