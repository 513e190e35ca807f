"""The spiking nets that every mechanism is run on, written as snntorch's own tutorials write them."""

from __future__ import annotations

import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn

TIME, BATCH, INPUTS, CLASSES = 3, 8, 36, 4


class LeakyNet(nn.Module):
    """Three layers; both the spikes and the membrane are read."""

    def __init__(self, learn=False):
        super().__init__()
        settings = {"threshold": 0.4, "learn_beta": learn, "learn_threshold": learn}
        if not learn:
            settings["spike_grad"] = surrogate.fast_sigmoid(slope=10)
        self.fc1 = nn.Linear(INPUTS, 16)
        self.lif1 = snn.Leaky(beta=torch.rand(16) if learn else 0.9, **settings)
        self.fc2 = nn.Linear(16, 8)
        self.lif2 = snn.Leaky(beta=0.8, **settings)
        self.fc3 = nn.Linear(8, CLASSES)
        self.lif3 = snn.Leaky(beta=0.7, **settings)

    def forward(self, x):
        mem1, mem2, mem3 = self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem()
        total = 0
        for now in x:
            spk1, mem1 = self.lif1(self.fc1(now), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk3, mem3 = self.lif3(self.fc3(spk2), mem3)
            total = total + spk3 + mem3
        return total


class RecurrentNet(nn.Module):
    """RLeaky in the first and in the last layer."""

    def __init__(self, first, last):
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, 16)
        self.lif1 = snn.RLeaky(beta=0.9, threshold=0.4, **first)
        self.fc2 = nn.Linear(16, 8)
        self.lif2 = snn.Leaky(beta=0.9, threshold=0.4)
        self.fc3 = nn.Linear(8, CLASSES)
        self.lif3 = snn.RLeaky(beta=0.9, threshold=0.4, **last)

    def forward(self, x):
        (spk1, mem1), mem2, (spk3, mem3) = (lif.reset_mem() for lif in (self.lif1, self.lif2, self.lif3))
        total = 0
        for now in x:
            spk1, mem1 = self.lif1(self.fc1(now), spk1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk3, mem3 = self.lif3(self.fc3(spk2), spk3, mem3)
            total = total + mem3
        return total


class SynapticNet(nn.Module):
    """Second-order neurons: the synaptic current decays too."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, 16)
        self.lif1 = snn.Synaptic(alpha=0.8, beta=0.9, threshold=0.6)
        self.fc2 = nn.Linear(16, 8)
        self.lif2 = snn.Synaptic(alpha=0.8, beta=0.9, threshold=0.6)
        self.fc3 = nn.Linear(8, CLASSES)
        self.lif3 = snn.Synaptic(alpha=0.8, beta=0.9, threshold=0.6)

    def forward(self, x):
        syn1, mem1 = self.lif1.reset_mem()
        syn2, mem2 = self.lif2.reset_mem()
        syn3, mem3 = self.lif3.reset_mem()
        total = 0
        for now in x:
            spk1, syn1, mem1 = self.lif1(self.fc1(now), syn1, mem1)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
            _, syn3, mem3 = self.lif3(self.fc3(spk2), syn3, mem3)
            total = total + mem3
        return total


class ConvNet(nn.Module):
    """Convolutions, feed-forward and recurrent."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.lif1 = snn.Leaky(beta=0.9, threshold=0.3)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.lif2 = snn.RLeaky(beta=0.9, threshold=0.3, conv2d_channels=4, kernel_size=3)
        self.fc = nn.Linear(4, CLASSES)
        self.lif3 = snn.Leaky(beta=0.9, threshold=0.3)

    def forward(self, x):
        mem1, (spk2, mem2), mem3 = self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem()
        total = 0
        for now in x.reshape(len(x), -1, 1, 6, 6):
            spk1, mem1 = self.lif1(self.conv1(now), mem1)
            pooled = nn.functional.max_pool2d(spk1, 2)
            spk2, mem2 = self.lif2(self.conv2(pooled), spk2, mem2)
            _, mem3 = self.lif3(self.fc(spk2.mean((2, 3))), mem3)
            total = total + mem3
        return total


def sequential():
    """One call is one time step: the neurons hold their state themselves."""
    return nn.Sequential(
        nn.Linear(INPUTS, 16),
        snn.Leaky(beta=0.9, threshold=0.4, init_hidden=True),
        nn.Linear(16, 8),
        snn.Leaky(beta=0.9, threshold=0.4, init_hidden=True),
        nn.Linear(8, CLASSES),
        snn.Leaky(beta=0.9, threshold=0.4, init_hidden=True, output=True),
    )


ONE_TO_ONE = {"all_to_all": False, "V": 0.5}

NETS = {
    "leaky": LeakyNet,
    "learnable": lambda: LeakyNet(learn=True),
    "recurrent": lambda: RecurrentNet({"linear_features": 16}, ONE_TO_ONE),
    "recurrent-readout": lambda: RecurrentNet({"linear_features": 16}, {"linear_features": CLASSES}),
    "one-to-one": lambda: RecurrentNet(ONE_TO_ONE | {"V": torch.rand(16)}, ONE_TO_ONE),
    "synaptic": SynapticNet,
    "convolutional": ConvNet,
    "sequential": sequential,
}
READOUTS = {"recurrent-readout": ["fc3", "lif3.recurrent"]}

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


def build(name, optimizer_name="sgd"):
    """The same fresh net and optimizer at every call; global randomness is left as it was."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        net = NETS[name]()
    return net, OPTIMIZERS[optimizer_name](net.parameters())


def forget(net):
    """Clear all neurons' state.

    snntorch's own ``utils.reset`` does not know neurons that were copied: it goes by a list that their
    constructor fills.
    """
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.reset_mem()


def unroll(net, x):
    """What the net says of ``x``, ``[time, sample, input]``."""
    if not isinstance(net, nn.Sequential):
        return net(x)
    forget(net)
    return sum(membrane for _, membrane in map(net, x))


def batch(number):
    generator = torch.Generator().manual_seed(number)
    x = (torch.rand(TIME, BATCH, INPUTS, generator=generator) < 0.5).float()
    return x, torch.randint(CLASSES, (BATCH,), generator=generator)


def loss_of(net, number):
    x, y = batch(number)
    return nn.functional.cross_entropy(unroll(net, x), y)


def train(net, optimizer, steps, start=0):
    """Train on the same batches at every call; returns copies of all parameters and buffers."""
    for number in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(net, number).backward()
        optimizer.step()
    return {name: value.clone() for name, value in net.state_dict().items()}
