"""The dense layer of GPT-2's code stores its weight as [in, node]: all is as in a Linear."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import bouton
from bouton.lab.coverage import Conv1D

EXAMPLES = [example for entry in bouton.registry().values() for example in entry.examples]
SIZES = (6, 8, 4, 3)


def nets():
    """The same net twice: of Linear, and of Conv1D."""
    linear, transposed = (
        nn.Sequential(
            kind(5, SIZES[0]), nn.Tanh(), kind(SIZES[0], 8), nn.Tanh(), kind(8, 4), nn.Tanh(), kind(4, 3)
        )
        for kind in (nn.Linear, lambda inputs, nodes: Conv1D(nodes, inputs))
    )
    for ours, other in zip(transposed[::2], linear[::2], strict=True):
        ours.weight.data, ours.bias.data = other.weight.data.T.clone(), other.bias.data.clone()
    return linear.double(), transposed.double()


def train(net, mechanism, optimizer_kind):
    optimizer = optimizer_kind(net.parameters(), lr=0.05)
    handle = bouton.attach(net, optimizer, [mechanism], seed=2)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 5, dtype=torch.float64, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), torch.arange(4) % 3).backward()
        optimizer.step()
    return handle


@pytest.mark.parametrize("optimizer_kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("mechanism", EXAMPLES, ids=repr)
def test_every_mechanism_does_what_it_does_to_a_linear(mechanism, optimizer_kind):
    linear, transposed = nets()
    first, second = (train(net, mechanism, optimizer_kind) for net in (linear, transposed))
    for ours, other in zip(transposed[::2], linear[::2], strict=True):
        torch.testing.assert_close(ours.weight.T, other.weight, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(ours.bias, other.bias, rtol=1e-12, atol=1e-13)
    for own, others in zip(first.report().rows, second.report().rows, strict=True):
        assert (own.weight, own.shape, own.left_because) == (
            others.weight,
            others.shape[::-1],
            others.left_because,
        )
    for name, numbers in first.stats().items():
        for weight, values in numbers.items():
            assert values == pytest.approx(second.stats()[name][weight], rel=1e-9)


@pytest.mark.parametrize(
    ("change", "stored"),
    [
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "weight_orig"),
        (lambda layer: parametrizations.weight_norm(layer, dim=1), "parametrizations.weight.original1"),
    ],
    ids=["pruned", "weight_norm"],
)
def test_a_pruned_or_parametrised_one_is_found(change, stored):
    net = nn.Sequential(Conv1D(4, 5), nn.Linear(4, 2))
    change(net[0])
    groups = bouton.find_groups(net)
    assert [group.name for group in groups] == [f"0.{stored}", "1.weight"]
    assert groups[0].node_count == 4


def test_only_what_is_stored_so_is_taken_for_one():
    class Conv1D(nn.Module):
        """A convolution of that name."""

        def __init__(self):
            super().__init__()
            self.weight, self.nf = nn.Parameter(torch.ones(4, 5, 3)), 4

    assert bouton.find_groups(Conv1D()) == ()
    conv = Conv1D()
    conv.weight = None
    assert bouton.find_groups(conv) == ()
