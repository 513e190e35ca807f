"""Training with each mechanism, spelled out around plain torch: what the tests of this folder compare with.

A net of three dense layers in double precision, once attached and once spelled out. Both have the same
parameter names, so that one training loop serves both.
"""

from __future__ import annotations

import torch
from oracles import Scaled
from torch import nn
from torch.nn import functional as F

import bouton
from bouton.sites import RandomStream, Synapses

INPUTS, HIDDEN, CLASSES, SEED = 6, 8, 3, 3
ACTIVATIONS = {"identity": lambda a: a, "tanh": torch.tanh}


def batch(step, size=8):
    """The same samples at every call."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(size, INPUTS, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (size,), generator=generator)


def loss_of(model, step):
    x, y = batch(step)
    return F.cross_entropy(model(x), y)


def train(model, optimizer, steps, start=0):
    """The plainest loop; a test has its own where it is about the loop."""
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, **{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, **options})


def adamw(parameters, **options):
    return torch.optim.AdamW(parameters, **{"lr": 0.01, **options})


def attached(mechanism, make=sgd, seed=SEED, dtype=torch.float64):
    """A fresh model with the mechanism, its optimizer, and the handle."""
    model = filled(nn.Sequential(*layers())).to(dtype)
    optimizer = make(model.parameters())
    return model, optimizer, bouton.attach(model, optimizer, [mechanism], seed=seed)


def spelled_out(mechanism, handle, make=sgd, seed=SEED, dtype=torch.float64):
    """The same without ``bouton.attach``; feedback weights are those that ``handle`` has drawn."""
    model = filled(SpelledOut(*layers())).to(dtype)
    model.mechanism, model.feedback = mechanism, feedback_of(mechanism, handle)
    return model, SpelledOutOptimizer(model, make(model.parameters()), seed)


def layers():
    sizes = (INPUTS, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, CLASSES)
    first, second, third = (nn.Linear(*size, dtype=torch.float64) for size in sizes)
    return first, nn.Tanh(), second, nn.Tanh(), third


def filled(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
    return model


def feedback_of(mechanism, handle):
    if not isinstance(mechanism, bouton.FeedbackAlignment):
        return {}
    claims = handle.state_dict()["claims"]
    tensors = {
        key.split("/")[1]: {**claim["tensors"][0], **dict(claim["made"][0])}
        for key, claim in claims.items()
    }
    return {name: own["feedback"] for name, own in tensors.items() if "feedback" in own}


class Fed(torch.autograd.Function):
    """A dense layer that sends ``error @ feedback`` down, of its own error or of the read-out's."""

    @staticmethod
    def forward(ctx, x, weight, bias, feedback, net, direct):
        ctx.save_for_backward(x, feedback)
        ctx.net, ctx.direct = net, direct
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, error):
        x, feedback = ctx.saved_tensors
        if error.shape[1] == CLASSES:
            ctx.net.output_error = error
        source = ctx.net.output_error if ctx.direct else error
        return source @ feedback, error.T @ x, error.sum(0), None, None, None


class SpelledOut(nn.Sequential):
    """Grapes, MultiSynapse and FeedbackAlignment in the forward pass; ``seen``: the raw outputs."""

    def forward(self, x):
        mechanism, seen = self.mechanism, self.__dict__.setdefault("seen", [])
        for name, layer in self.named_children():
            if not isinstance(layer, nn.Linear):
                x = layer(x)
                continue
            if f"{name}.weight" in self.feedback:
                feedback, direct = self.feedback[f"{name}.weight"], mechanism.kind == "dfa"
                x = Fed.apply(x, layer.weight, layer.bias, feedback, self, direct)
            else:
                x = layer(x)
            if self.training:
                seen.append((f"{name}.weight", x.detach()))
            if layer is self[-1]:
                continue
            if mechanism.site == "error":
                x = Scaled.apply(x, mechanism.rule(Synapses(layer.weight.detach())))
            if isinstance(mechanism, bouton.MultiSynapse):
                members = ACTIVATIONS[mechanism.activation](x).split(mechanism.gamma, dim=1)
                x = torch.cat([part.sum(1, keepdim=True).expand_as(part) for part in members], 1)
        return x


class SpelledOutOptimizer:
    """A plain optimizer, and around its steps what a rate or structure mechanism asks for."""

    def __init__(self, model, plain, seed):
        self.model, self.plain, self.mechanism = model, plain, model.mechanism
        self.step_count, self.taken = 0, {}
        for group in bouton.find_groups(model):
            if self.mechanism.site in ("rate", "structure") and self.mechanism.serves(group) is None:
                stream = RandomStream(seed, f"{type(self.mechanism).__name__}/{group.name}")
                weight = group.weight.detach().clone()
                synapses = Synapses(weight, stream=stream, depth=group.depth)
                synapses.state.update(self.mechanism.prepare(synapses))
                self.taken[group.name] = group.weight, synapses
        if self.mechanism.scope == "gradient":
            for name, (weight, _) in self.taken.items():
                weight.register_hook(lambda gradient, name=name: gradient * self.rule(name, gradient))

    def __getattr__(self, name):
        return getattr(self.plain, name)

    def rule(self, name, gradient, weight=None):
        current, made = self.taken[name]
        weight = current if weight is None else weight
        own = {"state": made.state, "stream": made.stream, "depth": made.depth}
        found = self.mechanism.rule(
            Synapses(weight.detach().clone(), gradient, step=self.step_count, **own)
        )
        return found[:, None] if isinstance(found, torch.Tensor) and found.ndim == 1 else found

    def step(self, closure=None):
        before = {name: weight.detach().clone() for name, (weight, _) in self.taken.items()}
        self.plain.step(closure)
        self.step_count += 1
        for name, output in self.model.__dict__.pop("seen", []):
            if name in self.taken:
                self.mechanism.observe(self.taken[name][1], output)
        with torch.no_grad():
            for name, (weight, _) in self.taken.items():
                due = self.step_count % self.mechanism.every == 0 and weight.grad is not None
                if self.mechanism.site == "structure" and due:
                    self.rewire(name, weight)
                elif self.mechanism.site == "rate" and self.mechanism.scope == "update":
                    old = before[name]
                    weight.copy_(old + self.rule(name, weight.grad, old) * (weight - old))

    def rewire(self, name, weight):
        changed, values = self.rule(name, weight.grad)
        weight.copy_(torch.where(changed, values, weight))
        if isinstance(self.plain, torch.optim.LBFGS) and self.mechanism.reset_moments and changed.any():
            self.plain.state.clear()  # its history is of the whole vector of weights
            return
        for moment in self.plain.state[weight].values() if self.mechanism.reset_moments else ():
            if getattr(moment, "shape", ()) == weight.shape:
                moment[changed] = 0.0  # so do SGD and Adam begin


def assert_same_weights(model, reference, rtol=1e-9, atol=1e-12):
    """Equal parameters, by name."""
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter, expected[name], rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
