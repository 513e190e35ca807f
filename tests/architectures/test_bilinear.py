"""nn.Bilinear: a node's synapses are all pairs of its two inputs."""

import pytest
import torch
from block_oracle import RATES, check_updates, remodeled_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bouton


class Net(nn.Module):
    def __init__(self, left=3, right=2, nodes=4):
        super().__init__()
        self.pair, self.head = nn.Bilinear(left, right, nodes), nn.Linear(nodes, 2)
        self.double()

    def forward(self, x, y):
        return self.head(torch.tanh(self.pair(x, y)))


def inputs(net, samples=3):
    sizes = net.pair.in1_features, net.pair.in2_features
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(samples, size, dtype=torch.float64, generator=generator) for size in sizes]


def loss(net):
    return net(*inputs(net)).square().sum()


def by_hand(net, x, y, clip):
    """Gradients of the summed squares: of the pair's weight and bias, and of both inputs."""
    weight, bias = net.pair.weight.tolist(), net.pair.bias.tolist()
    totals = [sum(abs(w) for row in node for w in row) for node in weight]
    factors = [2 * total / max(totals) for total in totals]
    if clip:
        factors = [min(max(factor, clip[0]), clip[1]) for factor in factors]
    of_weight, of_bias = torch.zeros_like(net.pair.weight), torch.zeros_like(net.pair.bias)
    of_x, of_y = torch.zeros_like(x), torch.zeros_like(y)
    for sample in range(len(x)):
        hidden = [
            sum(
                x[sample, i] * weight[o][i][j] * y[sample, j]
                for i in range(x.shape[1])
                for j in range(y.shape[1])
            )
            + bias[o]
            for o in range(len(bias))
        ]
        outputs = net.head.weight.detach() @ torch.stack(hidden).tanh() + net.head.bias.detach()
        for o, total in enumerate(hidden):
            error = sum(
                2 * value * w for value, w in zip(outputs, net.head.weight.detach()[:, o], strict=True)
            )
            error = factors[o] * error * (1 - total.tanh() ** 2)
            of_bias[o] += error
            for i in range(x.shape[1]):
                for j in range(y.shape[1]):
                    of_weight[o, i, j] += error * x[sample, i] * y[sample, j]
                    of_x[sample, i] += error * weight[o][i][j] * y[sample, j]
                    of_y[sample, j] += error * weight[o][i][j] * x[sample, i]
    return of_weight, of_bias, of_x, of_y


@given(
    left=st.integers(1, 3),
    right=st.integers(1, 3),
    nodes=st.integers(1, 4),
    samples=st.integers(1, 2),
    clip=st.sampled_from([None, (1.0, 2.0)]),
)
@settings(max_examples=15)
def test_propagated_grapes_equals_the_oracle(left, right, nodes, samples, clip):
    net = Net(left, right, nodes)
    x, y = (tensor.requires_grad_() for tensor in inputs(net, samples))
    expected = by_hand(net, x.detach(), y.detach(), clip)
    bouton.attach(net, None, [bouton.Grapes(clip=clip)])
    found = torch.autograd.grad(net(x, y).square().sum(), [net.pair.weight, net.pair.bias, x, y])
    for ours, oracle in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mechanism", RATES.values(), ids=RATES)
def test_updates_equal_the_oracle(mechanism):
    taken = {} if isinstance(mechanism, bouton.Grapes) else {"head.weight": (1, None)}
    check_updates(Net(), loss, mechanism, {"pair.weight": (1, None), **taken})


def test_remodeling_equals_the_oracle():
    remodeled_by_hand(Net(), loss, {"pair.weight": (1, None)})


@pytest.mark.parametrize(
    ("mechanism", "reason"),
    [
        (bouton.FeedbackAlignment(), "it has two inputs, and feedback goes to one"),
        (bouton.DalePrinciple(), "two presynaptic nodes at each synapse; use signs='incoming'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_two_inputs_are_one_too_many_for_some(mechanism, reason):
    net = nn.ModuleList([nn.Bilinear(3, 2, 4), nn.Linear(4, 4), nn.Linear(4, 2)])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rows = bouton.attach(net, optimizer, [mechanism]).report().rows
    assert reason in rows[0].left_because and rows[1].left_because is None


def test_signs_of_what_a_node_receives():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = bouton.attach(net, optimizer, [bouton.DalePrinciple(signs="incoming")])
    handle.remodel()
    for node in net.pair.weight:
        assert (node >= 0).all() or (node <= 0).all()
