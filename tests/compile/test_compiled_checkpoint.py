"""Activation checkpointing within a compiled model."""

import pytest
import torch
from compiling import QUIET
from torch import nn
from torch.utils.checkpoint import checkpoint

import bouton

pytestmark = QUIET


class Net(nn.Module):
    """The middle layer runs within a checkpoint."""

    def __init__(self, reentrant):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.reentrant = reentrant

    def middle(self, x):
        return torch.relu(self.second(x))

    def forward(self, x):
        return self.head(checkpoint(self.middle, torch.relu(self.first(x)), use_reentrant=self.reentrant))


def gradients(mechanisms, reentrant, fullgraph=None):
    torch.compiler.reset()
    torch.manual_seed(0)
    model = Net(reentrant)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = bouton.attach(model, optimizer, mechanisms)
    call = model if fullgraph is None else torch.compile(model, backend="aot_eager", fullgraph=fullgraph)
    call(torch.randn(5, 6, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()], handle


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(
    ("mechanisms", "fullgraph"),
    [
        ([bouton.Grapes(clip=None), bouton.MultiSynapse()], True),
        ([bouton.FeedbackAlignment()], False),
        ([bouton.FeedbackAlignment(kind="dfa")], False),
    ],
    ids=["error and wiring", "fa", "dfa"],
)
def test_checkpoints_compile(mechanisms, fullgraph, reentrant):
    found, _ = gradients(mechanisms, reentrant, fullgraph)
    for compiled, eager in zip(found, gradients(mechanisms, reentrant)[0], strict=True):
        torch.testing.assert_close(compiled, eager)


def test_a_compiled_checkpoint_shows_each_output_once():
    """Without compilation it is shown twice, which leaves the shares of a layer's nodes as they are."""
    mechanisms = [bouton.PlasticityDiversity(distribution="activity")]
    counts = [
        {
            claim.name: claim.memory.states[0]["active"]
            for _, claim in gradients(mechanisms, False, own)[1]._claims
        }
        for own in (None, True)
    ]
    assert torch.equal(counts[0].pop("second.weight"), 2 * counts[1].pop("second.weight"))
    for name, count in counts[0].items():
        assert torch.equal(counts[1][name], count)
