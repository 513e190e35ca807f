"""The wiring and the error site: what a layer's hook does."""

import copy
import pickle

import pytest
import torch
from oracles import Scaled
from torch import nn

import bouton
from bouton.mechanisms.grapes import responsibility


class Reused(nn.Module):
    """One module called twice, and one weight in two modules."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.alias = self.twice
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
        self.right.weight = self.left.weight
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = torch.tanh(self.alias(torch.tanh(self.twice(x))))
        return self.head(torch.tanh(self.right(torch.tanh(self.left(x)))))


def test_errors_of_shared_modules_and_tied_weights():
    torch.manual_seed(0)
    model, x = Reused(), torch.randn(5, 4)

    hidden = x
    for module in (model.twice, model.alias, model.left, model.right):
        factor = responsibility(module.weight.detach(), clip=None)
        hidden = torch.tanh(Scaled.apply(module(hidden), factor))
    loss = model.head(hidden).square().sum()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    bouton.attach(model, None, [bouton.Grapes(clip=None)])
    found = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for ours, oracle in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, oracle)


def test_a_weight_read_along_different_axes_has_no_nodes_for_hooks():
    model = nn.ModuleDict({"enc": nn.Conv2d(4, 4, 3), "dec": nn.ConvTranspose2d(4, 4, 3)})
    model["dec"].weight = model["enc"].weight
    with pytest.raises(ValueError, match="enc and dec share this weight and read it along different axes"):
        bouton.attach(model, None, [bouton.Grapes()], readout=())


def test_a_tied_embedding_is_named_in_the_report():
    model = nn.ModuleDict({"e": nn.Embedding(5, 4), "hidden": nn.Linear(4, 4), "o": nn.Linear(4, 5)})
    model["o"].weight = model["e"].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    report = bouton.attach(model, optimizer, [bouton.SpineRemodeling()]).report()
    assert "+ o.weight [5x4], shared with e.weight" in str(report)


def test_no_hook_where_no_gradient_flows():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    bouton.attach(model, None, [bouton.Grapes()])
    with torch.no_grad():
        assert model(torch.randn(2, 4)).shape == (2, 2)
    with torch.inference_mode():
        assert model(torch.randn(2, 4)).shape == (2, 2)


def test_a_low_precision_output_gets_a_low_precision_error():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    bouton.attach(model, None, [bouton.Grapes(), bouton.MultiSynapse(gamma=3)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(torch.randn(5, 4)).float().square().sum()
    loss.backward()
    assert model[0].weight.grad.dtype == torch.float32


def test_a_graph_that_was_built_before_a_pause_or_a_detach_is_plain():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.randn(5, 4)
    plain = torch.autograd.grad(model(x).sum(), model[0].weight)[0]
    handle = bouton.attach(model, None, [bouton.Grapes()])
    first, second, third = model(x).sum(), model(x).sum(), model(x).sum()
    with handle.paused():
        assert torch.equal(torch.autograd.grad(first, model[0].weight)[0], plain)
    assert not torch.equal(torch.autograd.grad(second, model[0].weight)[0], plain)
    handle.detach()
    assert torch.equal(torch.autograd.grad(third, model[0].weight)[0], plain)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_made_during_a_pause_is_attached(copied):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(5, 4)
    # a function of this test's own does not pickle: it must not travel with the model
    handle = bouton.attach(model, None, [bouton.MultiSynapse(where=lambda path, module: path == "0")])
    attached = model(x)
    with handle.paused():
        assert not torch.equal(model(x), attached)
        assert torch.equal(copied(model)(x), attached)


def test_memory_format_is_kept():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)).to(
        memory_format=torch.channels_last
    )
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    bouton.attach(model, None, [bouton.MultiSynapse(gamma=4)])
    assert model[0](x).is_contiguous(memory_format=torch.channels_last)
    reference = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(model(x), reference(x.contiguous()))


@pytest.mark.parametrize(
    ("where", "taken"),
    [
        ("alias", ["twice.weight"]),
        (["right", "t*"], ["twice.weight", "left.weight"]),
        (lambda path, module: path == "right", ["left.weight"]),
    ],
)
def test_a_weight_is_chosen_by_any_of_its_paths(where, taken):
    report = bouton.attach(Reused(), None, [bouton.MultiSynapse(where=where)]).report()
    assert [row.weight for row in report.rows if row.left_because is None] == taken


def test_an_observer_sees_a_raw_output_without_its_graph_and_prepares_with_all_weights_of_its_nodes():
    seen = []

    class Watching(bouton.Mechanism):
        site = "error"
        observes = True

        def prepare(self, synapses):
            seen.append([tuple(weight.shape) for weight in synapses.companions])
            return {}

        def observe(self, synapses, output):
            seen.append(output)

        def rule(self, synapses):
            return torch.ones(len(synapses.weight))

    cell = nn.RNNCell(4, 3)
    bouton.attach(cell, None, [Watching()], readout=())
    output = cell(torch.randn(2, 4))
    shapes, observed = seen
    assert shapes == [(3, 3)]
    assert torch.equal(observed, output) and not observed.requires_grad


HOOKS = {
    "its input": lambda layer: layer.register_forward_pre_hook(lambda layer, inputs: (2 * inputs[0],)),
    "its output": lambda layer: layer.register_forward_hook(lambda layer, inputs, output: 2 * output),
    "its output, and keeps it": lambda layer: layer.register_forward_hook(
        lambda layer, inputs, output: output.sigmoid()
    ),
}
OWN_WEIGHTS = bouton.FeedbackAlignment(init="weights")


def gradients(model, x):
    return torch.autograd.grad(model(x).square().sum(), list(model.parameters()))


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("changes", HOOKS)
@pytest.mark.parametrize("mechanism", [OWN_WEIGHTS, bouton.Grapes(clip=(1, 1))], ids=["feedback", "error"])
def test_hooks_of_others_are_no_part_of_the_layer(mechanism, changes, first):
    model, x = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2)),
        torch.randn(5, 3),
    )
    plain = copy.deepcopy(model)
    HOOKS[changes](plain[2])
    expected = gradients(plain, x)
    if first:
        HOOKS[changes](model[2])
    bouton.attach(model, None, [mechanism])
    if not first:
        HOOKS[changes](model[2])
    if changes == "its input" and not first and mechanism is OWN_WEIGHTS:
        for _ in range(2):  # the layer is as it was
            with pytest.raises(ValueError, match=r"pre-hook .* changes the input of 2\.weight"):
                model(x)
        return
    for ours, oracle in zip(gradients(model, x), expected, strict=True):
        assert torch.equal(ours, oracle)


@pytest.mark.parametrize(
    ("mechanism", "training", "expected"),
    [
        (bouton.Grapes(), True, 2),  # by the layer itself, and for the factor
        (bouton.Grapes(), False, 1),
        (bouton.FeedbackAlignment(), True, 1),
        (bouton.PlasticityDiversity(distribution="activity"), False, 1),
    ],
)
def test_a_computed_weight_is_computed_where_it_is_needed(mechanism, training, expected):
    class Counting(nn.Module):
        calls = 0

        def forward(self, weight):
            Counting.calls += 1
            return 2 * weight

    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).train(training)
    nn.utils.parametrize.register_parametrization(model[0], "weight", Counting())
    bouton.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), [mechanism])
    Counting.calls = 0
    with torch.set_grad_enabled(training):
        model(torch.ones(5, 3))
    assert Counting.calls == expected


def test_two_attachments_on_one_model_leave_each_other_alone():
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2)),
        torch.randn(5, 3),
    )
    plain = copy.deepcopy(model)
    feedback = bouton.attach(model, None, [bouton.FeedbackAlignment(where="2")])
    grapes = bouton.attach(model, None, [bouton.Grapes(where="0")])
    alone = copy.deepcopy(plain)
    bouton.attach(alone, None, [bouton.Grapes(where="0")])

    feedback.detach()
    for ours, oracle in zip(gradients(model, x), gradients(alone, x), strict=True):
        assert torch.equal(ours, oracle)
    grapes.detach()
    for ours, oracle in zip(gradients(model, x), gradients(plain, x), strict=True):
        assert torch.equal(ours, oracle)


def test_a_handle_that_is_detached_while_it_pauses_stays_off():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.ones(5, 3)
    expected = gradients(model, x)
    handle = bouton.attach(model, None, [bouton.Grapes(clip=None)])
    loss = model(x).square().sum()
    with handle.paused():
        handle.detach()
    for ours, plain in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
        assert torch.equal(ours, plain)
