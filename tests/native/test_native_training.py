"""Training with the loops in C and without them: the same draws, and weights equal up to rounding."""

import pytest
import torch
from torch import nn

import bouton
from bouton.native import ready
from bouton.native.library import _ARGUMENTS

CASES = {
    f"{name}-{number}": mechanism
    for name, entry in bouton.registry().items()
    for number, mechanism in enumerate(entry.examples)
}


def trained(mechanism, optimizer_kind):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()), nn.Linear(144, 300), nn.ReLU(), nn.Linear(300, 4)
    )
    optimizer = optimizer_kind(model.parameters())
    bouton.attach(model, optimizer, [mechanism], seed=3)
    for number in range(4):
        images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize(
    "optimizer_kind",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.001),
    ],
    ids=["sgd", "adamw"],
)
@pytest.mark.parametrize("name", CASES)
def test_training_is_the_same(torch_alone, name, optimizer_kind):
    found = trained(CASES[name], optimizer_kind)
    with torch_alone():
        expected = trained(CASES[name], optimizer_kind)
    for key in expected:
        # one replaced synapse more or less would be seen; Adam divides rounded gradients by their size
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=2e-5)


def test_all_loops_are_used(monkeypatch):
    loops, used = ready.library(), set()

    class Watched:
        def __getattr__(self, name):
            used.add(name)
            return getattr(loops, name)

    monkeypatch.setattr(ready, "library", Watched)
    for mechanism in (
        *(bouton.Grapes(), bouton.Grapes(mode="local"), bouton.MultiSynapse(), bouton.VolumePlasticity()),
        *(bouton.Crystallization(), bouton.SpineRemodeling(every=1)),
        bouton.PlasticityDiversity(distribution="activity"),
    ):
        # the second layer is large enough to be stepped in parts, and to make sums of nodes
        model = nn.Sequential(nn.Linear(8, 600), nn.ReLU(), nn.Linear(600, 500), nn.Linear(500, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        bouton.attach(model, optimizer, [mechanism])
        for _ in range(2):
            model(torch.randn(40, 8)).square().mean().backward()
            optimizer.step()
    assert used == _ARGUMENTS.keys()
