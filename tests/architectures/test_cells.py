"""Nets of recurrent cells, plain and with Grapes, against back-propagation through time by hand."""

import pytest
import torch
from block_oracle import check_updates, remodeled_by_hand
from cell_oracle import GATES, gradients_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bouton

STEPS = 5
GRAPES = {
    "plain": None,
    "clipped": bouton.Grapes(),
    "free": bouton.Grapes(clip=None),
    "normalized": bouton.Grapes(clip=None, normalize=True),
}


class Net(nn.Module):
    """Cells one above the other, unrolled over time, and a head that reads at every step."""

    def __init__(self, kinds, inputs, hidden, bias=True, **options):
        super().__init__()
        self.cells = nn.ModuleList()
        for kind in kinds:
            own = options if kind is nn.RNNCell else {}
            self.cells.append(kind(inputs, hidden, bias, **own))
            inputs = hidden
        self.head = nn.Linear(hidden, 3)
        self.double()
        for parameter in self.parameters():
            nn.init.normal_(parameter)  # large, so that gates open and close

    def forward(self, x):
        states, outputs = [None] * len(self.cells), []
        for signal in x:
            for place, cell in enumerate(self.cells):
                states[place] = cell(signal, states[place])
                signal = states[place][0] if isinstance(cell, nn.LSTMCell) else states[place]
            outputs.append(self.head(signal))
        return torch.stack(outputs)

    def loss(self, x, y):
        return sum(nn.functional.cross_entropy(output, y) for output in self(x))


def batch(inputs, samples=2):
    x = torch.randn(STEPS, samples, inputs, dtype=torch.float64, requires_grad=True)
    return x, torch.randint(3, (samples,))


@pytest.mark.parametrize("grapes", GRAPES.values(), ids=GRAPES)
@given(
    kinds=st.lists(st.sampled_from(list(GATES)), min_size=1, max_size=2),
    inputs=st.integers(1, 3),
    hidden=st.integers(1, 4),
    samples=st.integers(1, 2),
    bias=st.booleans(),
    nonlinearity=st.sampled_from(["tanh", "relu"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_gradients_equal_the_oracle(grapes, kinds, inputs, hidden, samples, bias, nonlinearity, seed):
    torch.manual_seed(seed)
    net = Net(kinds, inputs, hidden, bias, nonlinearity=nonlinearity)
    x, y = batch(inputs, samples)
    cells, head, of_inputs = gradients_by_hand(list(net.cells), net.head, x.detach(), y, grapes)
    if grapes:
        bouton.attach(net, None, [grapes])
    net.loss(x, y).backward()
    for cell, expected in zip(net.cells, cells, strict=True):
        for name, parameter in cell.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(net.head.weight.grad, head, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(x.grad, of_inputs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", GATES, ids=lambda kind: kind.__name__)
def test_a_cell_without_a_batch_axis(kind):
    net = Net([kind], 3, 4)
    x, y = batch(3, samples=1)
    bouton.attach(net, None, [bouton.Grapes()])
    sum(nn.functional.cross_entropy(output, y[0]) for output in net(x[:, 0])).backward()
    (expected,), _, _ = gradients_by_hand(list(net.cells), net.head, x.detach(), y, bouton.Grapes())
    for name, parameter in net.cells[0].named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", GATES, ids=lambda kind: kind.__name__)
def test_the_factor_comes_again_at_every_step(kind):
    """Through the loop alone the first input's error is multiplied once for each step that it passes."""

    def error(grapes):
        torch.manual_seed(1)
        net = Net([kind], 1, 1)
        if grapes:
            bouton.attach(net, None, [grapes])
        x = torch.randn(STEPS, 1, 1, dtype=torch.float64, requires_grad=True)
        net(x)[-1].sum().backward()
        return x.grad[0].item()

    # a single unit has the largest share: f = 2
    gain = error(bouton.Grapes(clip=None)) / error(None)
    if kind is nn.LSTMCell:  # its memory carries a part of the error past the factor
        assert gain != pytest.approx(2**STEPS, rel=1e-3)
    else:
        assert gain == pytest.approx(2**STEPS, rel=1e-9)


@pytest.mark.parametrize("kind", GATES, ids=lambda kind: kind.__name__)
def test_the_report_names_both_weights(kind):
    net = Net([kind], 3, 4)
    rows = {
        row.weight: row.left_because for row in bouton.attach(net, None, [bouton.Grapes()]).report().rows
    }
    assert rows["cells.0.weight_ih"] is None
    assert "modulated once, for weight_ih, by the share of both weights" in rows["cells.0.weight_hh"]
    with pytest.raises(ValueError, match="after their nonlinearity, and not their sums"):
        bouton.attach(Net([kind], 3, 4), None, [bouton.MultiSynapse()])


@pytest.mark.parametrize("grapes_mode", ["local", None])
@pytest.mark.parametrize("kind", GATES, ids=lambda kind: kind.__name__)
def test_rates_and_structure_act_gate_by_gate(kind, grapes_mode):
    blocks = {"cells.0.weight_ih": (GATES[kind], "cells.0.weight_hh")}
    blocks |= {"cells.0.weight_hh": (GATES[kind], "cells.0.weight_ih")}
    x, y = batch(3)
    if grapes_mode:
        check_updates(Net([kind], 3, 4), lambda net: net.loss(x, y), bouton.Grapes(mode="local"), blocks)
    else:
        remodeled_by_hand(Net([kind], 3, 4), lambda net: net.loss(x, y), blocks)


def test_a_frozen_input_weight_leaves_the_modulation_to_the_recurrent_one():
    def gradient(frozen):
        torch.manual_seed(0)
        net = Net([nn.GRUCell], 3, 4)
        net.cells[0].weight_ih.requires_grad_(not frozen)
        bouton.attach(net, None, [bouton.Grapes()])
        net(torch.randn(STEPS, 2, 3, dtype=torch.float64)).square().sum().backward()
        return net.cells[0].weight_hh.grad

    assert torch.equal(gradient(frozen=True), gradient(frozen=False))
