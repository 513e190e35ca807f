"""What every promise is run over: all registered mechanisms, several models, several optimizers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bouton

CLASSES = 4


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


def mlp():
    return nn.Sequential(
        nn.Linear(36, 16), nn.ReLU(inplace=True), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, CLASSES)
    )


MODELS = {"mlp": mlp, "residual": ResidualNet, "tied": TiedNet}

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}

NEUTRAL, EXAMPLES = (
    {
        f"{name}-{number}": mechanism
        for name, entry in bouton.registry().items()
        for number, mechanism in enumerate(getattr(entry, kind))
    }
    for kind in ("neutral", "examples")
)

over_models = pytest.mark.parametrize("model_name", MODELS)
over_optimizers = pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
over_neutral = pytest.mark.parametrize("mechanism", NEUTRAL.values(), ids=NEUTRAL)
over_examples = pytest.mark.parametrize("mechanism", EXAMPLES.values(), ids=EXAMPLES)


def build(model_name, optimizer_name="sgd"):
    """The same fresh model and optimizer at every call; global randomness is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[model_name]()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, OPTIMIZERS[optimizer_name](parameters)


def train(model, optimizer, steps, start=0, dtype=torch.float32):
    """Train on the same batches at every call; returns copies of all parameters and buffers."""
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 36, generator=generator).to(dtype)
        y = torch.randint(CLASSES, (8,), generator=generator)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    """True if two results of :func:`train` have the same names and the same bits."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
