"""Seeded rates and fused steps once more, slowly: Python's numbers, torch's optimizers in float64."""

import torch
from oracles import scaled_update

OPTIMIZERS = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}


def short(key, place):
    """The 16 random bits of one place, as a number with a sign."""
    word = hashed(key, place // 2)
    half = word >> 16 if place % 2 else word & 0xFFFF
    return half - (1 << 16) if half >> 15 else half


def hashed(key, number):
    """32 random bits."""
    x = (number ^ key[0]) % 2**32
    x = (mixed(x, 16) * 0x7FEB352D ^ key[1]) % 2**32
    x = mixed(x, 15) * 0x846CA68B % 2**32
    return mixed(x, 16) * 0x9E3779B1 % 2**32


def mixed(x, shift):
    signed = x - 2**32 if x >> 31 else x
    return (x ^ (signed >> shift)) % 2**32


def rates(seeded, shape):
    """The rates of a weight of this shape, row by row."""
    count = torch.Size(shape).numel()
    values = [1 + seeded.nu * short(seeded.key, seeded.start + i) / 2**15 for i in range(count)]
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
