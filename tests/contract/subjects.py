"""What every promise is run over: all registered mechanisms, several models, several optimizers."""

from __future__ import annotations

import pytest
import torch
from nets import CLASSES, NETS
from torch import nn

import bouton

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

EVERY_OPTIMIZER = ("mlp", "tied")
OTHERS = [net for net in NETS if net not in EVERY_OPTIMIZER]
over_models = pytest.mark.parametrize("model_name", NETS)
over_pairs = pytest.mark.parametrize(
    ("model_name", "optimizer_name"),
    [
        *((net, optimizer) for net in EVERY_OPTIMIZER for optimizer in OPTIMIZERS),
        *((net, ("sgd", "adamw")[number % 2]) for number, net in enumerate(OTHERS)),
    ],
)
over_optimizers = pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
over_neutral = pytest.mark.parametrize("mechanism", NEUTRAL.values(), ids=NEUTRAL)
over_examples = pytest.mark.parametrize("mechanism", EXAMPLES.values(), ids=EXAMPLES)


def build(model_name, optimizer_name="sgd", dtype=torch.float32):
    """The same fresh model and optimizer at every call; global randomness is left as it was."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = NETS[model_name]().to(dtype)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, OPTIMIZERS[optimizer_name](parameters)


def train(model, optimizer, steps, start=0, dtype=torch.float32):
    """Train on the same batches at every call; returns copies of all parameters and buffers.

    Every other step is given a closure, without which some optimizers make none.
    """
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 36, generator=generator).to(dtype)
        y = torch.randint(CLASSES, (8,), generator=generator)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        if step % 2 or isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    """True if two results of :func:`train` have the same names and the same bits."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
