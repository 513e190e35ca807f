"""Training the contract's nets with and without ``torch.compile``, and what differs."""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
from nets import CLASSES
from subjects import EXAMPLES, build
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.exc import Unsupported

import bouton

STEPS = 10
# g++ in this process: a pool of workers takes longer to start than these small nets take to compile
OPTIONS = {"inductor": {"config_patches": {"compile_threads": 1}}}
# Dynamo itself makes an instance of torch.autograd.Function, and asks tensors of a graph whether
# they have a gradient; torch 2.11 asks for a later Python than 3.13.0. As errors these would end a test.
QUIET = [
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # in torch.optim
    pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0"),
    # graphs are made of operations of torch, and are compared with the same ones without a graph
    pytest.mark.usefixtures("without_loops"),
]
ULPS = 16 * torch.finfo(torch.float32).eps


def in_graph(mechanism):
    """Whether a mechanism acts in the forward and backward pass, and not in the optimizer's step alone."""
    return mechanism.site in ("wiring", "error") or mechanism.observes


def label(mechanism):
    """The mechanism's class, and what tells it from the default one."""
    values, default = mechanism.to_dict(), type(mechanism)().to_dict()
    changed = [f"{name}={value!r}" for name, value in values.items() if value != default[name]]
    return f"{type(mechanism).__name__}({', '.join(changed)})"


ALL_AT_ONCE = [
    bouton.Grapes(),
    bouton.MultiSynapse(gamma=2),
    bouton.FeedbackAlignment(),
    bouton.PlasticityDiversity(distribution="activity"),
    bouton.SpineRemodeling(every=3),
    bouton.DalePrinciple(),
]
ROWS = {
    "plain": [],
    **{label(mechanism): [mechanism] for mechanism in EXAMPLES.values() if in_graph(mechanism)},
    "all at once": ALL_AT_ONCE,
}


class Run(NamedTuple):
    """What a training run left, the graphs that it compiled, and how many of those after two steps."""

    values: dict[str, torch.Tensor]
    graphs: int = 0
    late: int = 0


class Counter:
    """A backend that counts the graphs that it is given."""

    def __init__(self, backend="aot_eager"):
        self.backend, self.graphs = backend, 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return lookup_backend(self.backend)(graph, inputs, **OPTIONS.get(self.backend, {}))


def trained(net, mechanisms=(), backend=None, fullgraph=True, steps=STEPS):
    """Train a fresh net; ``values`` are its weights, buffers, last gradients and the mechanisms' state."""
    torch.compiler.reset()
    model, optimizer = build(net)
    claims = bouton.attach(model, optimizer, mechanisms)._claims if mechanisms else []
    counter = Counter(backend)
    call = model if backend is None else torch.compile(model, backend=counter, fullgraph=fullgraph)
    early = 0
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 36, generator=generator)
        y = torch.randint(CLASSES, (8,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(call(x), y).backward()
        optimizer.step()
        early = counter.graphs if step == 1 else early  # a spiking net has no membrane before its first
    gradients = {f"{n} (gradient)": p.grad for n, p in model.named_parameters() if p.grad is not None}
    states = {
        f"{claim.key} {block} {name}": tensor.float()
        for _, claim in claims
        for block, state in enumerate(claim.memory.states)
        for name, tensor in state.items()
    }
    values = {k: v.clone() for k, v in {**model.state_dict(), **gradients, **states}.items()}
    return Run(values, counter.graphs, counter.graphs - early)


def difference(first, second):
    """The largest difference of any tensor, relative to the largest number of that tensor."""
    assert first.keys() == second.keys()
    return max(
        ((first[name] - second[name]).abs().max() / second[name].abs().max().clamp_min(1e-12)).item()
        for name in first
    )


@functools.cache
def eager(net, row):
    """The values of a run without compilation."""
    return trained(net, ROWS[row]).values


class Outcome(NamedTuple):
    """``graph`` is "one graph" or "graph breaks"; ``difference`` is that between compiled and eager."""

    graph: str
    difference: float
    graphs: int
    late: int


@functools.cache
def compiled(net, row, backend):
    """Compile a net with the mechanisms of a row, in one graph where that can be."""
    try:
        graph, run = "one graph", trained(net, ROWS[row], backend)
    except Unsupported:
        graph, run = "graph breaks", trained(net, ROWS[row], backend, fullgraph=False)
    return Outcome(graph, difference(run.values, eager(net, row)), run.graphs, run.late)


def allowed(net, backend):
    """The difference that is put down to rounding: ten times that of the plain net.

    Rounding is that of ten steps, and mechanisms make larger ones: 5 times was seen.
    """
    return max(10 * compiled(net, "plain", backend).difference, ULPS)
