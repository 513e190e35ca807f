"""Seeded rates and fused steps once more, slowly: Python's numbers, torch's optimizers in float64."""

import torch
from oracles import random_short, scaled_update

OPTIMIZERS = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}


def rates(seeded, shape):
    """The rates of a weight of this shape, row by row."""
    count = torch.Size(shape).numel()
    values = [1 + seeded.nu * random_short(seeded.key, seeded.start + i) / 2**15 for i in range(count)]
    if seeded.clip is not None:
        values = [min(max(value, seeded.clip[0]), seeded.clip[1]) for value in values]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


class Slowly:
    """One weight in float64 under one of torch's optimizers, each update scaled synapse by synapse."""

    def __init__(self, name, weight, seeded, settings):
        self.weight = torch.nn.Parameter(weight.detach().double())
        self.optimizer = OPTIMIZERS[name]([self.weight], **settings)
        self.rate = rates(seeded, weight.shape)

    def step(self, gradient):
        before = self.weight.detach().clone()
        self.weight.grad = gradient.double()
        self.optimizer.step()
        with torch.no_grad():
            self.weight.copy_(scaled_update(before, self.weight, self.rate))

    def take_over(self, weight, state):
        """Go on from a weight and a state of lower precision."""
        with torch.no_grad():
            self.weight.copy_(weight)
        own = {name: value.clone() if name == "step" else value.double() for name, value in state.items()}
        self.optimizer.state[self.weight] = own

    @property
    def state(self):
        return self.optimizer.state[self.weight]
