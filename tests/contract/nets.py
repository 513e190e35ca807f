"""Small nets of every kind that users train; each takes ``[sample, 36]`` and gives one number per class."""

from __future__ import annotations

import snntorch
import torch
from torch import nn

CLASSES = 4
TOKENS, WIDTH = 6, 8


def mlp():
    return nn.Sequential(
        nn.Linear(36, 16), nn.ReLU(inplace=True), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, CLASSES)
    )


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, groups=2)

    def forward(self, x):
        hidden = nn.functional.relu(self.norm(self.first(x)), inplace=True)
        return nn.functional.relu(self.second(hidden) + x, inplace=True)


class ResidualNet(nn.Module):
    """In-place activations, batch norm, grouped and transposed convolutions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.up = nn.ConvTranspose2d(8, 8, 2, groups=2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = nn.functional.leaky_relu_(self.up(self.blocks(self.stem(x.reshape(-1, 1, 6, 6)))))
        return self.head(x.mean((2, 3)))


class TiedNet(nn.Module):
    """A frozen layer, a module used twice, and a weight tied between two modules."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(36, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.shared = nn.Linear(8, 8)
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.right.weight = self.left.weight
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = torch.tanh(self.frozen(torch.tanh(self.first(x))))
        x = torch.tanh(self.shared(torch.tanh(self.shared(x))))
        return self.head(torch.tanh(self.right(torch.tanh(self.left(x)))))


class TransformerNet(nn.Module):
    """Packed attention in encoder layers, which eval mode may run by a fused path."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(36 // TOKENS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x.unflatten(1, (TOKENS, -1)))).mean(1))


class LSTMNet(nn.Module):
    """A fused LSTM of two layers, the upper one reading both directions, and a hidden layer."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(36 // TOKENS, WIDTH, 2, batch_first=True, bidirectional=True)
        self.hidden = nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        last = self.lstm(x.unflatten(1, (TOKENS, -1)))[0][:, -1]
        return self.head(torch.tanh(self.hidden(last)))


class CellNet(nn.Module):
    """A GRU cell and an LSTM cell, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRUCell(36 // TOKENS, WIDTH)
        self.lstm = nn.LSTMCell(WIDTH, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        below, above = None, None
        for step in x.unflatten(1, (TOKENS, -1)).unbind(1):
            below = self.gru(step, below)
            above = self.lstm(below, above)
        return self.head(torch.tanh(self.hidden(above[0])))


def surrogate(potential):
    """A function of a module, because what snntorch.surrogate.fast_sigmoid() makes cannot be pickled."""
    return snntorch.surrogate.FastSigmoid.apply(potential, 25)


class SpikingNet(nn.Module):
    """Leaky integrate-and-fire neurons of snntorch, over a few time steps."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(36, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, CLASSES)
        self.lif1 = snntorch.Leaky(beta=0.8, threshold=0.5, spike_grad=surrogate)
        self.lif2 = snntorch.Leaky(beta=0.8, threshold=0.2, spike_grad=surrogate)

    def forward(self, x):
        below, above, total = self.lif1.init_leaky(), self.lif2.init_leaky(), 0
        for _ in range(4):
            spikes, below = self.lif1(self.first(x), below)
            spikes, above = self.lif2(self.second(spikes), above)
            total = total + self.head(spikes)
        # snntorch keeps the last membrane with its graph, which no copy of a module may hold
        self.lif1.reset_mem(), self.lif2.reset_mem()
        return total


class Conv1D(nn.Module):
    """The dense layer of GPT-2's code, whose weight is stored ``[in, node]``."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(nx, nf), std=0.3))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], self.nf)


class LanguageNet(nn.Module):
    """A decoder-only transformer whose read-out is tied to its embedding."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(CLASSES, WIDTH)
        self.positions = nn.Embedding(TOKENS, WIDTH)
        self.attend, self.project = Conv1D(3 * WIDTH, WIDTH), Conv1D(WIDTH, WIDTH)
        self.up, self.down = Conv1D(4 * WIDTH, WIDTH), Conv1D(WIDTH, 4 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x):
        x = self.tokens(x[:, :TOKENS].sigmoid().mul(CLASSES).long()) + self.positions.weight
        q, k, v = self.attend(self.norm(x)).chunk(3, -1)
        x = x + self.project(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return self.head(self.norm(x)[:, -1])


NETS = {
    "mlp": mlp,
    "residual": ResidualNet,
    "tied": TiedNet,
    "transformer": TransformerNet,
    "lstm": LSTMNet,
    "cells": CellNet,
    "spiking": SpikingNet,
    "language": LanguageNet,
}
