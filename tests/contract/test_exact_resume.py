"""Promise 4: what model and optimizer save is enough to go on bit for bit."""

import copy
import io
import json

import pytest
import safetensors.torch
import torch
from subjects import EXAMPLES, build, over_examples, over_pairs, same, train
from torch import nn
from torch.utils._pytree import tree_flatten

import bouton

SEVERAL = [
    bouton.Grapes(),
    bouton.PlasticityDiversity(distribution="temporal", decay=0.5, period=2),
    bouton.VolumePlasticity(),
    bouton.Crystallization(threshold=0.02),
    bouton.SpineRemodeling(every=3),
    bouton.DalePrinciple(),
    bouton.MultiSynapse(),
    bouton.FeedbackAlignment(),
]


def through_torch_save(state):
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def through_safetensors(state):
    """One file: the tensors, and whatever else there is as JSON in its header."""
    tensors, text = bouton.flatten_state(state)
    file = safetensors.torch.save(tensors, metadata={"state": text})
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    return bouton.unflatten_state(safetensors.torch.load(file), header["__metadata__"]["state"])


def alike(first, second):
    """Whether two states of any depth have the same structure, numbers and bits."""
    (ours, here), (theirs, there) = map(tree_flatten, (first, second))
    return here == there and all(
        (a.dtype == b.dtype and torch.equal(a, b)) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(ours, theirs, strict=True)
    )


over_formats = pytest.mark.parametrize("saved_and_loaded", [through_torch_save, through_safetensors])


class Setup:
    """Everything a training script makes anew at every start, in the usual order."""

    def __init__(self, model_name, optimizer_name, mechanisms, dtype=torch.float32, scheduled=False):
        self.model, self.optimizer = build(model_name, optimizer_name, dtype)
        if scheduled:
            self.optimizer = self.in_groups()
        self.handle = bouton.attach(self.model, self.optimizer, mechanisms, seed=5)
        parts = [self.model, self.optimizer]
        if scheduled:
            parts.append(torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=5))
        self.parts, self.dtype = parts, dtype

    def in_groups(self):
        """The same optimizer with the biases in a group of their own."""
        settings = [
            {
                "params": [p for p in self.model.parameters() if (p.ndim > 1) == weights],
                "lr": lr,
                "weight_decay": 0.1,
            }
            for weights, lr in ((True, 0.05), (False, 0.01))
        ]
        return type(self.optimizer)(settings)

    def train(self, start):
        for step in range(start, start + 4):
            result = train(self.model, self.optimizer, 1, step, self.dtype)
            if len(self.parts) == 3:
                self.parts[2].step()
        return result


def check(make, saved_and_loaded):
    """Save after four steps, go on for four; the same from the saved files must give the same bits."""
    setup = make()
    setup.train(0)
    files = [saved_and_loaded(copy.deepcopy(part.state_dict())) for part in setup.parts]
    expected, moments, stats = setup.train(4), setup.optimizer.state_dict(), setup.handle.stats()
    again = make()
    for part, file in zip(again.parts, files, strict=True):
        part.load_state_dict(file)
    assert same(again.train(4), expected)
    assert again.handle.stats() == stats
    assert alike(again.optimizer.state_dict(), moments)


@over_pairs
@over_examples
def test_a_run_goes_on_from_its_saved_state(mechanism, model_name, optimizer_name):
    check(lambda: Setup(model_name, optimizer_name, [mechanism]), through_torch_save)


@over_formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
@over_examples
def test_with_groups_a_scheduler_and_16_bits(mechanism, optimizer_name, dtype, saved_and_loaded):
    check(lambda: Setup("mlp", optimizer_name, [mechanism], dtype, scheduled=True), saved_and_loaded)


@over_formats
@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw", "lbfgs"])
@pytest.mark.parametrize("model_name", ["mlp", "language"])
def test_with_many_mechanisms_at_once(model_name, optimizer_name, saved_and_loaded):
    check(lambda: Setup(model_name, optimizer_name, SEVERAL), saved_and_loaded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_state_keeps_its_type_whatever_the_weights_are(dtype):
    def make():
        return Setup("mlp", "sgd", [EXAMPLES["PlasticityDiversity-7"], bouton.VolumePlasticity()], dtype)

    check(make, through_torch_save)


@over_examples
def test_a_plain_optimizer_loads_the_file(mechanism):
    setup = Setup("mlp", "adamw", [mechanism])
    setup.train(0)
    model, optimizer = build("mlp", "adamw")
    model.load_state_dict(setup.model.state_dict())
    optimizer.load_state_dict(through_torch_save(setup.optimizer.state_dict()))
    state = setup.optimizer.state_dict()
    del state["bouton"]
    assert alike(optimizer.state_dict(), state)
    train(model, optimizer, steps=1)


@over_examples
def test_a_plain_file_starts_the_mechanisms_fresh_and_says_so(mechanism):
    setup = Setup("mlp", "adamw", [mechanism])
    setup.train(0)
    trained = setup.train(4)
    state = copy.deepcopy(setup.optimizer.state_dict())  # torch would share the tensors
    del state["bouton"]
    again = Setup("mlp", "adamw", [mechanism])
    again.train(0)
    again.model.load_state_dict(trained)
    with pytest.warns(UserWarning, match="no state of the attached mechanisms, which start fresh"):
        again.optimizer.load_state_dict(state)
    setup.handle.detach()  # what a call of attach on the trained weights would make
    fresh = bouton.attach(setup.model, setup.optimizer, [mechanism], seed=5)
    assert alike(again.handle.state_dict(), fresh.state_dict())
    assert same(again.train(8), setup.train(8))


@over_examples
def test_what_was_saved_stays_as_it_was(mechanism):
    setup = Setup("mlp", "adamw", [mechanism])
    setup.train(0)
    saved = setup.handle.state_dict()
    kept = copy.deepcopy(saved)
    setup.train(4)
    assert alike(saved, kept)
    setup.handle.load_state_dict(saved)
    setup.train(8)
    assert alike(saved, kept)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def attached(model, mechanisms, seed=0):
    optimizer = sgd(model)
    bouton.attach(model, optimizer, mechanisms, seed=seed)
    return optimizer


@pytest.mark.parametrize(
    ("model", "mechanisms", "seed", "message"),
    [
        (
            nn.Linear(6, 8),
            [bouton.Crystallization()],
            0,
            "it has PlasticityDiversity, and attached are Crystallization",
        ),
        (
            nn.Linear(6, 8),
            [bouton.PlasticityDiversity(nu=0.2)],
            0,
            r"PlasticityDiversity\(nu=0.16\), and attached is nu=0.2",
        ),
        (
            nn.Linear(6, 8),
            [bouton.PlasticityDiversity()],
            1,
            r"seed=0, and attached is seed=1; .*attach\(..., seed=0\)",
        ),
        (
            nn.Sequential(nn.Linear(6, 8)),
            [bouton.PlasticityDiversity()],
            0,
            "state alone has PlasticityDiversity/weight; this model alone has PlasticityDiversity/0.weight",
        ),
        (
            nn.Linear(8, 6),
            [bouton.PlasticityDiversity()],
            0,
            r"of a weight \[8, 6\], and this model's is \[6, 8\]",
        ),
    ],
)
def test_state_of_something_else_is_refused_before_anything_is_loaded(model, mechanisms, seed, message):
    state = attached(nn.Linear(6, 8), [bouton.PlasticityDiversity()]).state_dict()
    state["param_groups"][0]["lr"] = 7.0
    optimizer = attached(model, mechanisms, seed)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert alike(optimizer.state_dict(), before)


def test_two_attachments_of_one_optimizer_ride_together():
    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
        optimizer = sgd(model)
        first = bouton.attach(model[0], optimizer, [bouton.PlasticityDiversity()], seed=1)
        second = bouton.attach(model[1], optimizer, [bouton.SpineRemodeling(every=2)], seed=2)
        return model, optimizer, first, second

    def step(model, optimizer):
        model(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()

    model, optimizer, first, second = make()
    for _ in range(3):
        step(model, optimizer)
    again = make()
    again[0].load_state_dict(model.state_dict())
    again[1].load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert alike([h.state_dict() for h in again[2:]], [first.state_dict(), second.state_dict()])
    with pytest.raises(ValueError, match=r"of 1 calls of .*attach, and this optimizer has 2"):
        again[1].load_state_dict(attached(nn.Linear(6, 8), [bouton.PlasticityDiversity()]).state_dict())
    again[2].detach()
    with pytest.raises(ValueError, match=r"of 2 calls of .*attach, and this optimizer has 1"):
        again[1].load_state_dict(optimizer.state_dict())
    again[3].detach()
    again[1].load_state_dict(optimizer.state_dict())
    assert "bouton" not in again[1].state_dict()


def test_a_state_loaded_apart_is_forgotten_once_another_file_came():
    setup = Setup("mlp", "sgd", [bouton.SpineRemodeling()])
    plain = copy.deepcopy(setup.optimizer.state_dict())
    del plain["bouton"]
    setup.train(0)
    apart = copy.deepcopy(setup.handle.state_dict())
    setup.handle.load_state_dict(apart)
    setup.optimizer.load_state_dict(plain)  # which belongs to it
    setup.train(4)
    for _ in range(2):
        with pytest.warns(UserWarning, match="start fresh"):
            setup.optimizer.load_state_dict(plain)
        setup.train(0)


def test_a_copied_optimizer_saves_the_state_of_the_copied_handle():
    setup = Setup("mlp", "sgd", [bouton.SpineRemodeling()])
    _, optimizer, handle = copy.deepcopy((setup.model, setup.optimizer, setup.handle))
    handle.remodel()
    assert optimizer.state_dict()["bouton"] == [handle.state_dict()]
    assert setup.optimizer.state_dict()["bouton"] != [handle.state_dict()]
    optimizer.load_state_dict(setup.optimizer.state_dict())
    assert handle.state_dict() == setup.handle.state_dict()
