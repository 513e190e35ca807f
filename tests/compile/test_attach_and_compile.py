"""Attaching, pausing and detaching before and after compilation: never ignored."""

import copy
import io
import subprocess
import sys

import pytest
import torch
from compiling import QUIET, Counter
from torch import nn

import bouton

pytestmark = QUIET
X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
MECHANISMS = [bouton.Grapes(clip=None), bouton.MultiSynapse(gamma=2)]
OTHERS = [bouton.FeedbackAlignment(), bouton.MultiSynapse(gamma=4)]


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch.compiler.reset()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return torch.relu(self.layer(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make():
    torch.manual_seed(0)
    return Net()


def gradients(model, call=None):
    model.zero_grad()
    (model if call is None else call)(X).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def alike(first, second):
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(first, second, strict=True))


def expected(mechanisms=()):
    """The gradients of an attached model, or of a plain one, without compilation."""
    model = make()
    if mechanisms:
        bouton.attach(model, None, mechanisms)
    return gradients(model)


PLAIN, ATTACHED, OTHER = expected(), expected(MECHANISMS), expected(OTHERS)


# Ways to compile: each gives what to attach to, what to call, and how many graphs a forward pass has.


def attached_wrapper(model, backend):
    wrapper = torch.compile(model, backend=backend, fullgraph=True)
    return wrapper, wrapper, 1


def attached_inside(model, backend):
    return model, torch.compile(model, backend=backend, fullgraph=True), 1


def in_place(model, backend):
    model.compile(backend=backend, fullgraph=True)
    return model, model, 1


def function(model, backend):
    return model, torch.compile(lambda x: model(x), backend=backend, fullgraph=True), 1


def forward_method(model, backend):
    model.forward = torch.compile(model.forward, backend=backend, fullgraph=True)
    return model, model, 1


def wrapped_blocks(model, backend):
    for number, block in enumerate(model.blocks):
        model.blocks[number] = torch.compile(block, backend=backend, fullgraph=True)
    return model, model, 1  # all blocks share one


def blocks_in_place(model, backend):
    for block in model.blocks:
        block.compile(backend=backend, fullgraph=True)
    return model, model, 1


def wrapped_layers(model, backend):
    for block in model.blocks:
        block.layer = torch.compile(block.layer, backend=backend, fullgraph=True)
    return model, model, 1


WAYS = [
    attached_wrapper,
    attached_inside,
    in_place,
    function,
    forward_method,
    wrapped_blocks,
    blocks_in_place,
    wrapped_layers,
]


@pytest.mark.parametrize(("way", "ran_before"), [(way, number % 2 > 0) for number, way in enumerate(WAYS)])
def test_attach_pause_and_detach_are_seen(way, ran_before):
    model, counter = make(), Counter()
    target, call, graphs = way(model, counter)
    if ran_before:
        assert alike(gradients(model, call), PLAIN)
        assert counter.graphs == graphs
    handle = bouton.attach(target, None, MECHANISMS)
    assert alike(gradients(model, call), ATTACHED)
    for _ in range(3):
        with handle.paused():
            assert alike(gradients(model, call), PLAIN)
        assert alike(gradients(model, call), ATTACHED)
    # one with hooks that act, one with hooks that do not, one without hooks
    assert counter.graphs == (2 + ran_before) * graphs
    handle.detach()
    assert alike(gradients(model, call), PLAIN)
    handle = bouton.attach(target, None, OTHERS)
    assert alike(gradients(model, call), OTHER)
    handle.detach()
    assert alike(gradients(model, call), PLAIN)


@pytest.mark.parametrize("way", [attached_inside, in_place, function, wrapped_blocks])
@pytest.mark.parametrize("plain_first", [True, False])
def test_a_plain_model_of_the_same_class_stays_apart(way, plain_first):
    plain, attached = make(), make()
    bouton.attach(attached, None, MECHANISMS)
    runs = [(plain, way(plain, "aot_eager")[1], PLAIN), (attached, way(attached, "aot_eager")[1], ATTACHED)]
    for _ in range(2):
        for model, call, wanted in runs if plain_first else reversed(runs):
            assert alike(gradients(model, call), wanted)


@pytest.mark.parametrize("way", [wrapped_blocks, blocks_in_place, wrapped_layers])
def test_blocks_of_one_class_with_and_without_mechanisms(way):
    def attach(model):
        bouton.attach(model.blocks[1], None, [bouton.Grapes(clip=None)], readout=())
        bouton.attach(model.blocks[2], None, MECHANISMS, readout=())

    model = make()
    attach(model)
    wanted = gradients(model)
    model = make()
    attach(model)
    _, call, _ = way(model, "aot_eager")
    for _ in range(2):
        assert alike(gradients(model, call), wanted)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_of_an_attached_model_compile_and_are_detached(how):
    model, plain = make(), make()
    bouton.attach(model, None, MECHANISMS)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twin = copy.deepcopy(model) if how == "deepcopy" else torch.load(file, weights_only=False)
    calls = [torch.compile(own, backend="aot_eager", fullgraph=True) for own in (plain, twin)]
    assert alike(gradients(plain, calls[0]), PLAIN)
    assert alike(gradients(twin, calls[1]), ATTACHED)
    bouton.detach(twin)
    assert alike(gradients(twin, calls[1]), PLAIN)


def test_no_trace_stays_on_a_detached_layer():
    model = make()
    before = {name: (type(m._parameters), list(m.__dict__)) for name, m in model.named_modules()}
    parameters = dict(model.named_parameters())
    handle = bouton.attach(model, None, MECHANISMS)
    assert type(model.first._parameters) is not dict
    handle.detach()
    assert {n: (type(m._parameters), list(m.__dict__)) for n, m in model.named_modules()} == before
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


def test_a_graph_of_before_attach_or_detach_finishes_as_it_began():
    """The graph of the backward pass is made with that of the forward pass."""
    model = make()
    call = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss = call(X).square().sum()
    handle = bouton.attach(model, None, MECHANISMS)
    model.zero_grad()
    loss.backward()
    assert alike([p.grad for p in model.parameters()], PLAIN)
    for late in (handle.paused, handle.detach):
        loss = call(X).square().sum()
        model.zero_grad()
        context = late()
        if context is None:
            loss.backward()
        else:
            with context:
                loss.backward()
        assert alike([p.grad for p in model.parameters()], ATTACHED)


def test_settings_of_torch_stay_as_they_are():
    before = torch._dynamo.config.get_config_copy()
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = bouton.attach(model, optimizer, [*MECHANISMS, bouton.FeedbackAlignment(kind="dfa")])
    torch.compile(model, backend="aot_eager")(X).sum().backward()
    optimizer.step()
    handle.detach()
    assert torch._dynamo.config.get_config_copy() == before


def test_importing_bouton_does_not_import_the_compiler():
    code = "import sys, bouton; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
