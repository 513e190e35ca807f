"""The nets whose training by the published GRAPES code is on record."""

import functools
from pathlib import Path

import numpy as np
import torch
from torch import nn

import bouton

BATCHES = 4


@functools.cache
def GRAPES():  # noqa: N802
    with np.load(Path(__file__).parent.parent / "data" / "grapes.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def layers_of(case, batches):
    return [GRAPES()[f"{case}/w{batches}/{layer}"] for layer in range(3)]


def net(weights, activation):
    """A net without biases."""
    layers = []
    for weight in weights:
        layers.append(nn.Linear(*reversed(weight.shape), bias=False, dtype=torch.float64))
        layers[-1].weight.data.copy_(weight)
        layers.append(nn.ReLU(inplace=True) if activation == "relu" else nn.Tanh())
    return nn.Sequential(*layers[:-1])


def trained(case, mechanisms):
    """Train the net of a case, and yield it after each of its batches."""
    _, optimizer, activation, _ = case.split("-")
    batch, rate = GRAPES()[f"{case}/meta"].tolist()
    model = net(layers_of(case, 0), activation)
    step = {
        "SGD": lambda p: torch.optim.SGD(p, lr=rate),
        "mom": lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9),
        "Adam": lambda p: torch.optim.Adam(p, lr=rate),
    }[optimizer](model.parameters())
    if mechanisms:
        bouton.attach(model, step, mechanisms)
    x, y = GRAPES()[f"{case}/x"], GRAPES()[f"{case}/y"]
    for done in range(BATCHES):
        part = slice(int(done * batch), int((done + 1) * batch))
        step.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        step.step()
        yield model
