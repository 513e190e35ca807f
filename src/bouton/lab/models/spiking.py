"""A spiking net of leaky integrate-and-fire neurons."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bouton.lab.dataset import Dataset

WIDTH = 256
STEPS = 25  # for samples that do not change in time
DECAY = 0.9  # of the membrane potential from one time step to the next
SLOPE = 10.0  # of the fast sigmoid that stands in for the spike's derivative


class SpikingLayer(nn.Module):
    """Synapses, and the leaky integrate-and-fire neurons that they lead to.

    No layer feeds back to one below, so that each layer may do all time steps before the next begins. The
    result is that of stepping all layers together, and the synapses are one matrix product.

    Args:
        inputs: nodes of the layer below.
        outputs: neurons.
        fires: False for neurons that integrate and never fire.
    """

    def __init__(self, inputs: int, outputs: int, *, fires: bool = True) -> None:
        import snntorch

        super().__init__()
        self.fires = fires
        self.synapses = nn.Linear(inputs, outputs)
        self.neurons = snntorch.Leaky(
            beta=DECAY,
            spike_grad=snntorch.surrogate.fast_sigmoid(SLOPE),
            reset_mechanism="subtract" if fires else "none",
        )
        # snntorch lists every neuron that was ever made, and so keeps the net of every run in memory.
        snntorch.SpikingNeuron.instances.remove(self.neurons)

    def forward(self, x: Tensor) -> Tensor:
        """From `[time, sample, input]` to spikes or, without firing, membrane potentials, likewise."""
        current = self.synapses(x)
        membrane = torch.zeros_like(current[0])
        outputs = []
        for step in current:
            spikes, membrane = self.neurons(step, membrane)
            outputs.append(spikes if self.fires else membrane)
        self.neurons.reset_mem()  # it keeps the last one, whose graph can be neither copied nor freed
        return torch.stack(outputs)


class Spiking(nn.Module):
    """Spiking layers, and a read-out of the mean membrane potential of neurons that never fire.

    Args:
        steps: the time steps of a sample, or None where a sample is a constant current.
        features: the numbers per time step.
        classes: the number of classes.
    """

    def __init__(self, steps: int | None, features: int, classes: int) -> None:
        super().__init__()
        self.steps, self.features = steps, features
        self.hidden = nn.Sequential(SpikingLayer(features, WIDTH), SpikingLayer(WIDTH, WIDTH))
        self.readout = SpikingLayer(WIDTH, classes, fires=False)

    def forward(self, x: Tensor) -> Tensor:
        """One number per class, `[sample, class]`."""
        x = x.reshape(len(x), -1, self.features).transpose(0, 1)
        if self.steps is None:
            x = x.expand(STEPS, -1, -1)
        potentials: Tensor = self.readout(self.hidden(x))
        return potentials.mean(0)


def snn(dataset: Dataset) -> nn.Module:
    r"""Two hidden layers of 256 leaky integrate-and-fire neurons, with surrogate gradients.

    .. math:: U_t = \beta U_{t-1} + W S_t + b - R_{t-1}, \qquad S^{out}_t = [U_t > 1]

    with the decay beta = 0.9 and the reset R, which is 1 where the potential was above 1. In the backward
    pass the derivative of a spike is that of a fast sigmoid, 1 / (1 + 10 |U - 1|)^2. The read-out's
    neurons never fire; a class's number is its mean potential over time.

    Samples `[time, feature]` with two or more time steps are fed in step by step: the rows of
    sequential-fashion-mnist, or the spikes of rate-coded-fashion-mnist. A sample of any other shape is a
    constant current into every first synapse for 25 time steps.

    Args:
        dataset: what to fit; any shape per sample.

    References:
        Neftci, Mostafa, Zenke: Surrogate gradient learning in spiking neural networks, IEEE Signal
        Processing Magazine 36 (2019), doi 10.1109/MSP.2019.2931595. The neurons are snntorch's.

    Example:
        >>> from bouton.lab.data import digits
        >>> snn(digits()).readout.synapses
        Linear(in_features=256, out_features=10, bias=True)
    """
    shape = tuple(dataset.x_train.shape[1:])
    steps = shape[0] if len(shape) == 2 and shape[0] > 1 else None
    features = shape[1] if steps else dataset.x_train[0].numel()
    return Spiking(steps, features, dataset.classes)
