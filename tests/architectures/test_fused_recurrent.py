"""nn.RNN, nn.LSTM and nn.GRU: rates and structure act gate by gate, on every weight of every layer."""

import copy
import warnings

import pytest
import torch
from block_oracle import RATES, check_updates, remodeled_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

import bouton

GATES = {nn.RNN: 1, nn.LSTM: 4, nn.GRU: 3}
NOT_SEEN = "a fused recurrent layer computes its nodes where no hook can see them"


class Net(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.core = kind(3, 4, **options)
        width = (options.get("proj_size") or 4) * (2 if options.get("bidirectional") else 1)
        self.hidden, self.head = nn.Linear(width, 4), nn.Linear(4, 2)
        self.double()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(self.core(x)[0])))


def loss(net):
    x = torch.linspace(-2, 2, 30, dtype=torch.float64).reshape(5, 2, 3)
    return net(x).square().mean()


def blocks_of(kind, layers, bidirectional, projected):
    blocks = {}
    for layer in range(layers):
        for way in ("", "_reverse") if bidirectional else ("",):
            names = [f"core.weight_{part}_l{layer}{way}" for part in ("ih", "hh", "hr")]
            blocks[names[0]] = (GATES[kind], names[1])
            blocks[names[1]] = (GATES[kind], names[0])
            if projected:
                blocks[names[2]] = (1, None)
    return blocks


@pytest.mark.parametrize("mechanism", RATES.values(), ids=RATES)
@given(
    kind=st.sampled_from(list(GATES)),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    projected=st.booleans(),
)
@settings(max_examples=10)
def test_updates_equal_the_oracle(mechanism, kind, layers, bidirectional, bias, projected):
    projected = projected and kind is nn.LSTM
    options = {"proj_size": 2} if projected else {}
    net = Net(kind, num_layers=layers, bidirectional=bidirectional, bias=bias, **options)
    check_updates(net, loss, mechanism, blocks_of(kind, layers, bidirectional, projected))


@pytest.mark.parametrize("kind", GATES, ids=lambda kind: kind.__name__)
def test_remodeling_equals_the_oracle(kind):
    options = {"proj_size": 2} if kind is nn.LSTM else {}
    net = Net(kind, num_layers=2, bidirectional=True, **options)
    remodeled_by_hand(net, loss, blocks_of(kind, 2, True, kind is nn.LSTM))


@pytest.mark.parametrize("kind", GATES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "mechanism", [bouton.Grapes(), bouton.MultiSynapse(), bouton.FeedbackAlignment()], ids=str
)
def test_the_report_says_what_no_hook_can_see(kind, mechanism):
    net = Net(kind, bidirectional=True)
    rows = bouton.attach(net, None, [mechanism]).report().rows
    reasons = [row.left_because for row in rows if row.weight.startswith("core.")]
    assert len(reasons) == 4 and all(NOT_SEEN in reason for reason in reasons)
    with pytest.raises(ValueError, match=NOT_SEEN):
        bouton.attach(Net(kind), None, [bouton.Grapes(where="core")])


def test_activity_cannot_be_counted():
    net = Net(nn.GRU)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    report = bouton.attach(net, optimizer, [bouton.PlasticityDiversity(distribution="activity")]).report()
    assert [NOT_SEEN in (row.left_because or "") for row in report.rows] == [True, True, False, False]


def test_a_recurrent_read_out_is_left_with_all_of_its_weights():
    optimizer = torch.optim.SGD((net := nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 2))).parameters(), lr=0.1)
    rows = bouton.attach(net, optimizer, [bouton.Grapes(mode="local")]).report().rows
    assert [row.left_because for row in rows] == [None, *["the read-out is never modulated"] * 2]


@pytest.mark.parametrize("kind", GATES, ids=lambda kind: kind.__name__)
def test_a_run_goes_on_from_its_saved_state_gate_by_gate(kind):
    mechanisms = [
        bouton.Crystallization(threshold=0.05, factor=0.9),
        bouton.PlasticityDiversity(distribution="temporal", decay=0.5, period=1),
        bouton.VolumePlasticity(),
        bouton.SpineRemodeling(every=2),
    ]

    def run(steps, saved=()):
        torch.manual_seed(0)
        net = Net(kind, bidirectional=True)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        parts = net, optimizer, bouton.attach(net, optimizer, mechanisms)
        for part, state in zip(parts, saved, strict=False):
            part.load_state_dict(state)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(net).backward()
            optimizer.step()
            parts[2].stats()
        return [copy.deepcopy(part.state_dict()) for part in parts]

    whole, second_half = run(6)[0], run(3, run(3))[0]
    assert all(torch.equal(value, second_half[name]) for name, value in whole.items())


def pruned(layer):
    prune.l1_unstructured(layer, "weight_hh_l0", 0.5)


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(layer, "weight_hh_l0")


@pytest.mark.parametrize(
    ("change", "stored"),
    [
        (pruned, "weight_hh_l0_orig"),
        (old_weight_norm, "weight_hh_l0_v"),
        (
            lambda layer: parametrizations.weight_norm(layer, "weight_hh_l0"),
            "parametrizations.weight_hh_l0.original1",
        ),
    ],
    ids=["pruned", "old weight_norm", "weight_norm"],
)
def test_a_changed_weight_is_found_with_its_gates_and_its_companion(change, stored):
    net = Net(nn.LSTM)
    change(net.core)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    groups = {group.name: group for group in bouton.find_groups(net)}
    assert list(groups)[:2] == ["core.weight_ih_l0", f"core.{stored}"]
    assert groups["core.weight_ih_l0"].companions == ("weight_hh_l0",)
    bouton.attach(net, optimizer, [bouton.Grapes(mode="local")])
    loss(net).backward()
    weight, recurrent = net.core.weight_ih_l0.detach().clone(), net.core.weight_hh_l0.detach().clone()
    stepped = groups[f"core.{stored}"].weight
    before, gradient = stepped.detach().clone(), stepped.grad.clone()
    optimizer.step()
    rate = torch.cat(
        [
            (a.abs().sum(1) + b.abs().sum(1)) / (a.abs().sum(1) + b.abs().sum(1)).max() * 2
            for a, b in zip(weight.chunk(4), recurrent.chunk(4), strict=True)
        ]
    ).clamp(1, 2)
    torch.testing.assert_close(stepped.detach(), before - 0.1 * rate[:, None] * gradient)
