"""Exported, traced and scripted models: what is in them, and what is refused."""

import pytest
import torch
from compiling import QUIET
from torch import nn

import bouton

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:`?torch.jit.* is deprecated"),
    # the shapes that hooks look at are those of the layer, and stay
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
POOLED = [bouton.MultiSynapse(gamma=2, activation="tanh")]
ALL = [
    *POOLED,
    bouton.Grapes(clip=None),
    bouton.FeedbackAlignment(),
    bouton.PlasticityDiversity(distribution="activity"),
]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def attached(mechanisms):
    torch.compiler.reset()
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = model(X)
    bouton.attach(model, optimizer, mechanisms)
    return model.eval(), plain


def exported(model):
    return torch.export.export(model, (X,)).module()


def exported_strictly(model):
    return torch.export.export(model, (X,), strict=True).module()


def traced(model):
    return torch.jit.trace(model, (X,))


@pytest.mark.parametrize("mechanisms", [POOLED, ALL], ids=["pooling", "all"])
@pytest.mark.parametrize("way", [exported, exported_strictly, traced])
def test_what_leaves_the_model_has_the_pooling(way, mechanisms):
    model, plain = attached(mechanisms)
    found = way(model)(X)
    torch.testing.assert_close(found, model(X))
    assert not torch.allclose(found, plain, atol=1e-3)


@pytest.mark.parametrize("way", [exported, exported_strictly, traced])
def test_what_is_exported_trains_without_what_acts_on_errors(way):
    """A program that is exported holds the forward pass alone."""
    model, _ = attached(ALL)
    program = way(model)
    program(X).square().sum().backward()
    found = {name: parameter.grad for name, parameter in program.named_parameters()}
    pooled, _ = attached(POOLED)
    pooled(X).square().sum().backward()
    for name, parameter in pooled.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_recording_a_program_leaves_no_mark_on_the_mechanisms():
    torch.compiler.reset()
    model, _ = attached([bouton.PlasticityDiversity(distribution="activity")])
    state = model.first._bouton.owner.state_dict()
    for way in (exported, exported_strictly):  # a trace is checked by a forward pass of the model itself
        way(model.train())(X)
    later = model.first._bouton.owner.state_dict()
    assert str(later) == str(state)


def test_direct_feedback_is_exported():
    model, plain = attached([bouton.FeedbackAlignment(kind="dfa")])
    torch.testing.assert_close(exported(model)(X), plain)


@pytest.mark.parametrize("mechanism", ALL, ids=lambda mechanism: type(mechanism).__name__)
def test_scripting_is_refused_by_name(mechanism):
    model, _ = attached([mechanism])
    with pytest.raises(AttributeError, match="cannot compile the hooks of bouton; use"):
        torch.jit.script(model)


def test_what_acts_in_the_step_may_be_scripted():
    model, plain = attached([bouton.PlasticityDiversity()])
    torch.testing.assert_close(torch.jit.script(model)(X), plain)


def test_scripted_layers_are_no_layers_to_attach_to():
    with pytest.raises(ValueError, match="found no weight to act on"):
        bouton.attach(torch.jit.script(Net()), None, [bouton.Grapes()])
