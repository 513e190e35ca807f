"""What is trained in one process and in several: nets, batches and mechanisms, in double precision.

After many steps a rounding error may turn a comparison, such as that of a weight with its threshold; in
double precision none comes near enough to one.
"""

from __future__ import annotations

import torch
from torch import nn

import bouton

INPUTS, CLASSES, BATCH, STEPS = 16, 10, 8, 12


def mlp():
    """Layers of 16, 3, 8 and 10 rows: over four processes, none of the 3 is left for the last one."""
    return nn.Sequential(
        nn.Linear(INPUTS, 16),
        nn.Tanh(),
        nn.Linear(16, 3),
        nn.Tanh(),
        nn.Linear(3, 8),
        nn.ReLU(),
        nn.Linear(8, CLASSES),
    )


class ConvNet(nn.Module):
    """Ordinary, grouped and transposed convolutions, of 6 output channels."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        x = torch.tanh(self.first(x.reshape(-1, 1, 4, 4)))
        return self.head(torch.tanh(self.up(torch.tanh(self.second(x)))).mean((2, 3)))


class Transformer(nn.Module):
    """Attention with packed weights."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x.unflatten(1, (4, 4)))).mean(1))


class Lookup(nn.Module):
    """An embedding with a row for padding, which stays, and a layer of GPT-2, stored ``[in, node]``."""

    class Conv1D(nn.Module):
        def __init__(self, nf, nx):
            super().__init__()
            self.nf = nf
            self.weight = nn.Parameter(torch.randn(nx, nf) / 3)
            self.bias = nn.Parameter(torch.zeros(nf))

        def forward(self, x):
            return x @ self.weight + self.bias

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(7, 6, padding_idx=2)
        self.hidden = self.Conv1D(8, 6)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        tokens = x.sigmoid().mul(7).long()
        return self.head(torch.tanh(self.hidden(self.tokens(tokens))).mean(1))


NETS = {"mlp": mlp, "conv": ConvNet, "transformer": Transformer, "lookup": Lookup}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


class Median(bouton.Mechanism):
    """A rule of a user's own: it asks for what torch cannot do on parts of a weight, and keeps a state."""

    site = "rate"

    def rule(self, synapses):
        size = synapses.weight.abs()
        rate = torch.full_like(size, 0.5)
        rate[size > size.flatten().quantile(0.5)] = 1.5
        if bool((size > 0.2).any()):
            rate = rate * 1.01
        seen = synapses.state.setdefault("seen", torch.zeros_like(size))
        synapses.state["seen"] = seen + rate
        return rate + 0.001 * seen


EXAMPLES = {
    f"{name}-{number}": [mechanism]
    for name, entry in bouton.registry().items()
    for number, mechanism in enumerate(entry.examples)
}
# All that commute, in two ways.
TOGETHER = [
    bouton.Grapes(),
    bouton.PlasticityDiversity(distribution="activity"),
    bouton.Crystallization(threshold=1e-3, factor=0.95),
    bouton.VolumePlasticity(),
    bouton.SpineRemodeling(every=3),
    bouton.DalePrinciple(reset_moments=True),
    bouton.MultiSynapse(),
]
OTHERWISE = [
    bouton.FeedbackAlignment(),
    bouton.Grapes(mode="local", normalize=True),
    bouton.PlasticityDiversity(distribution="temporal", decay=0.9, period=1),  # a draw at step 10
    bouton.Crystallization(threshold=0.02, factor=0.9),
    bouton.SpineRemodeling(every=4, redraw="published"),
    bouton.DalePrinciple(signs="incoming"),
]
EVERYWHERE = [
    bouton.PlasticityDiversity(where="*", distribution="weight"),
    bouton.SpineRemodeling(where="*", every=2),
]
GRADIENT = [
    bouton.Grapes(mode="presynaptic"),
    bouton.PlasticityDiversity(scope="gradient"),
    bouton.SpineRemodeling(every=4),
]

# name -> net, optimizer, mechanisms
ALONE = {f"mlp/sgd/{name}": ("mlp", "sgd", own) for name, own in EXAMPLES.items()}
COMBINED = {
    "mlp/sgd/together": ("mlp", "sgd", TOGETHER),
    "mlp/adamw/otherwise": ("mlp", "adamw", OTHERWISE),
    "conv/adamw/together": ("conv", "adamw", TOGETHER),
    "conv/sgd/otherwise": ("conv", "sgd", OTHERWISE),
    "transformer/sgd/together": ("transformer", "sgd", TOGETHER),
    "transformer/adamw/otherwise": ("transformer", "adamw", OTHERWISE),
    "lookup/adamw/everywhere": ("lookup", "adamw", EVERYWHERE),
    "mlp/adamw/gradient": ("mlp", "adamw", GRADIENT),
    "mlp/sgd/own": ("mlp", "sgd", [Median()]),
}
RUNS = ALONE | COMBINED


def alone(model):
    """In place of what spreads a model over processes."""
    return model


def start(wrap, net, optimizer_name, mechanisms):
    """A fresh model, the same at every call, in what ``wrap`` makes of it, its optimizer, and a handle."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETS[net]().double()
    model = wrap(model)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    return model, optimizer, bouton.attach(model, optimizer, mechanisms, seed=3)


def batch(step, part=0, parts=1):
    """One of the equal parts of a step's batch."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, INPUTS, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (BATCH,), generator=generator)
    own = slice(part * BATCH // parts, (part + 1) * BATCH // parts)
    return x[own], y[own]


def loss_of(model, step, part, parts):
    x, y = batch(step, part, parts)
    return nn.functional.cross_entropy(model(x), y)


def train(model, optimizer, steps, part=0, parts=1):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step, part, parts).backward()
        optimizer.step()


def whole(values):
    """Copies of all tensors, with all of their entries."""
    return {
        name.removeprefix("module."): (
            value.full_tensor() if isinstance(value, torch.distributed.tensor.DTensor) else value
        )
        .detach()
        .clone()
        for name, value in values.items()
    }


def run(wrap, part, parts, name):
    """The weights after a run."""
    model, optimizer, _ = start(wrap, *RUNS[name])
    train(model, optimizer, range(STEPS), part, parts)
    return whole(model.state_dict())


def accumulate(wrap, part, parts):
    """Each step's part of the batch in two halves, of which the first is not yet reduced."""
    model, optimizer, _ = start(wrap, "mlp", "adamw", [*GRADIENT[:1], *TOGETHER[1:]])
    for step in range(10):
        optimizer.zero_grad()
        for half in (0, 1):
            if hasattr(model, "set_requires_gradient_sync"):
                model.set_requires_gradient_sync(half == 1)
            if hasattr(model, "require_backward_grad_sync"):
                model.require_backward_grad_sync = half == 1  # what DDP's no_sync() sets
            (loss_of(model, step, 2 * part + half, 2 * parts) / 2).backward()
        optimizer.step()
    return whole(model.state_dict())


def overflow(wrap, part, parts, optimizer_name):
    """With a GradScaler; at step 3 the loss of one process alone is infinite."""
    model, optimizer, handle = start(wrap, "mlp", optimizer_name, TOGETHER)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(8):
        optimizer.zero_grad()
        loss = loss_of(model, step, part, parts)
        scaler.scale(loss * torch.inf if step == 3 and part == 0 else loss).backward()
        scaler.step(optimizer)
        scaler.update()
    numbers = handle.stats()["Crystallization"]["0.weight"]
    return whole(model.state_dict()) | {name: torch.tensor(number) for name, number in numbers.items()}


def by_hand(wrap, part, parts):
    """Remodeling by hand and the numbers of every mechanism, before an evaluation and after it."""
    model, optimizer, handle = start(wrap, "mlp", "adamw", TOGETHER)
    train(model, optimizer, range(3), part, parts)
    found = {}
    for place in ("before", "after"):
        handle.remodel()
        for mechanism, weights in handle.stats().items():
            for weight, numbers in weights.items():
                for name, number in numbers.items():
                    found[f"{place}/{mechanism}/{weight}/{name}"] = torch.tensor(number)
        with torch.no_grad():
            model(batch(0)[0])
    return whole(model.state_dict()) | found


def first_logs(wrap, part, parts):
    """The first process alone asks for numbers, between two batches and after a step."""
    model, optimizer, handle = start(wrap, "mlp", "adamw", TOGETHER)
    train(model, optimizer, range(3), part, parts)
    model(batch(3, part, parts)[0])
    if part == 0:
        assert handle.stats() and str(handle.report())
    optimizer.zero_grad()
    train(model, optimizer, range(3, 6), part, parts)
    if part == 0:
        assert handle.stats()
    return whole(model.state_dict())


def wrapped_later(wrap, part, parts, mechanisms):
    """Attached to a plain model that is wrapped only then."""
    model, optimizer, _ = start(alone, "mlp", "sgd", mechanisms)
    model = wrap(model)
    if hasattr(model, "reshard"):  # fully_shard makes other parameters
        optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model, optimizer, range(8), part, parts)
    return whole(model.state_dict())


def attached_inside(wrap, part, parts):
    """Attached to what the wrapper holds."""
    model, optimizer, handle = start(wrap, "mlp", "sgd", TOGETHER)
    handle.detach()
    bouton.attach(getattr(model, "module", model), optimizer, TOGETHER, seed=3)
    train(model, optimizer, range(8), part, parts)
    return whole(model.state_dict())


SCENES = {
    **{name: (run, name) for name in RUNS},
    "accumulate": (accumulate,),
    "overflow/unfused": (overflow, "adamw"),
    "overflow/fused": (overflow, "fused"),
    "by hand": (by_hand,),
    "first logs": (first_logs,),
    "wrapped later": (wrapped_later, TOGETHER),
    "wrapped later, forward": (wrapped_later, [bouton.Grapes(), bouton.MultiSynapse()]),
    "attached inside": (attached_inside,),
}


def play(scene, wrap=alone, part=0, parts=1):
    """What a scene comes to, in one process or in one of several."""
    function, *arguments = SCENES[scene]
    return function(wrap, part, parts, *arguments)
