"""A spiking net forward and backward by hand: one sample, time step and node at a time, no autograd.

A layer's nodes are leaky integrate-and-fire neurons. With ``i`` the current of all synapses into a node,
``u`` its membrane, ``s`` its spike, ``h`` the derivative of the surrogate:

    u[t] = beta u[t-1] + i[t] - drop s[t-1],    s[t] = u[t] > threshold
    du[t] = ds[t] h(u[t] - threshold) + beta du[t+1],    di[t] = f du[t]

The reset ``drop s`` carries no gradient. The factor ``f`` multiplies the error at the current only: the
weights, the bias and the spikes that arrive through these synapses see it, the membrane's own path through
time does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from oracles import responsibility
from torch import Tensor, nn
from torch.testing import assert_close

import bouton

Vector = list[float]
Series = list[Vector]  # [time][node]


@dataclass(frozen=True)
class Neuron:
    """``drop``: what a spike takes off the membrane one step later; ``slope``: of the surrogate."""

    beta: float
    threshold: float
    drop: float
    slope: Callable[[float], float]


class Projection:
    """Synapses ``[node][input]`` with their biases, their factors and their gradients."""

    def __init__(self, weight: Tensor, bias: Tensor, factor: Sequence[float] | None = None) -> None:
        self.weight, self.bias = weight.tolist(), bias.tolist()
        self.factor = [1.0] * len(self.bias) if factor is None else factor
        self.weight_gradient = [[0.0] * len(row) for row in self.weight]
        self.bias_gradient = [0.0] * len(self.bias)

    def current(self, signal: Vector) -> Vector:
        """The current into every node."""
        currents = []
        for row, current in zip(self.weight, self.bias, strict=True):
            for weight, value in zip(row, signal, strict=True):
                current += weight * value
            currents.append(current)
        return currents

    def send_back(self, error: Vector, signal: Vector) -> Vector:
        """Add to the gradients, and return the error of ``signal``."""
        below = [0.0] * len(signal)
        for node, row in enumerate(self.weight):
            modulated = self.factor[node] * error[node]
            self.bias_gradient[node] += modulated
            for index, weight in enumerate(row):
                self.weight_gradient[node][index] += modulated * signal[index]
                below[index] += modulated * weight
        return below


@dataclass(frozen=True)
class Layer:
    """Nodes, the synapses that feed them, and those among themselves, which delay by one step."""

    feed: Projection
    recurrent: Projection | None = None


def run_layer(layer: Layer, neuron: Neuron, signal: Series) -> tuple[Series, Series]:
    """Membranes and spikes."""
    membrane, spike = [0.0] * len(layer.feed.bias), [0.0] * len(layer.feed.bias)
    membranes, spikes = [], []
    for now in signal:
        current = layer.feed.current(now)
        if layer.recurrent:
            looped = layer.recurrent.current(spike)
            current = [a + b for a, b in zip(current, looped, strict=True)]
        membrane = [
            neuron.beta * u + i - neuron.drop * s for u, i, s in zip(membrane, current, spike, strict=True)
        ]
        spike = [float(u > neuron.threshold) for u in membrane]
        membranes.append(membrane)
        spikes.append(spike)
    return membranes, spikes


def send_back(
    layer: Layer,
    neuron: Neuron,
    signal: Series,
    trace: tuple[Series, Series],
    of_membranes: Series,
    of_spikes: Series,
) -> Series:
    """Add a layer's gradients, given what it is told from above; return the error of its ``signal``."""
    membranes, spikes = trace
    silence = [0.0] * len(layer.feed.bias)
    later, looped = silence, silence  # errors of the membrane and, through the loop, of the spike
    below: Series = []
    for t in reversed(range(len(signal))):
        error = []
        for node, membrane in enumerate(membranes[t]):
            of_spike = of_spikes[t][node] + looped[node]
            through_spike = of_spike * neuron.slope(membrane - neuron.threshold)
            error.append(through_spike + neuron.beta * later[node] + of_membranes[t][node])
        below.insert(0, layer.feed.send_back(error, signal[t]))
        if layer.recurrent:
            looped = layer.recurrent.send_back(error, spikes[t - 1] if t else silence)
        later = error
    return below


def add_gradients(
    layers: list[Layer],
    neuron: Neuron,
    inputs: Tensor,
    targets: Tensor,
    read: Literal["spikes", "membranes"],
) -> None:
    """Add the gradients of softmax cross-entropy on what is ``read``, summed over time, to all layers.

    ``inputs`` is ``[time, sample, input]``; the loss is the mean over samples.
    """
    samples = inputs.transpose(0, 1).tolist()
    for x, target in zip(samples, targets.tolist(), strict=True):
        signals, traces = [x], []
        for layer in layers:
            traces.append(run_layer(layer, neuron, signals[-1]))
            signals.append(traces[-1][1])

        watched = traces[-1][1 if read == "spikes" else 0]
        powers = [math.exp(sum(values)) for values in zip(*watched, strict=True)]
        error = [power / sum(powers) / len(samples) for power in powers]
        error[target] -= 1 / len(samples)
        told, nothing = [error] * len(x), [[0.0] * len(error)] * len(x)
        of_membranes, of_spikes = (nothing, told) if read == "spikes" else (told, nothing)

        for layer, signal, trace in zip(reversed(layers), signals[-2::-1], reversed(traces), strict=True):
            of_spikes = send_back(layer, neuron, signal, trace, of_membranes, of_spikes)
            of_membranes = [[0.0] * len(values) for values in of_spikes]


def gradients_by_hand(
    linears: list[list[nn.Linear]],
    grapes: bouton.Grapes | None,
    neuron: Neuron,
    inputs: Tensor,
    targets: Tensor,
    read: Literal["spikes", "membranes"],
) -> list[tuple[nn.Linear, Projection]]:
    """Each module of a net with its gradients, given for every layer the feed and, if any, the loop.

    With ``grapes``, all layers but the last are modulated.
    """
    pairs, layers = [], []
    for own in linears:
        hidden = own is not linears[-1]
        projections = []
        for linear in own:
            weight, bias, factor = linear.weight.detach(), linear.bias.detach(), None
            if grapes and hidden:
                factor = responsibility(weight, grapes.clip, grapes.normalize)
            projections.append(Projection(weight, bias, factor))
        pairs += zip(own, projections, strict=True)
        layers.append(Layer(*projections))
    add_gradients(layers, neuron, inputs, targets, read)
    return pairs


def assert_gradients_agree(pairs: list[tuple[nn.Linear, Projection]]) -> None:
    """Weights' and biases' gradients equal those by hand to 1e-12."""
    for linear, projection in pairs:
        for parameter, expected in (
            (linear.weight, projection.weight_gradient),
            (linear.bias, projection.bias_gradient),
        ):
            assert_close(parameter.grad, parameter.new_tensor(expected), rtol=1e-12, atol=1e-12)
