"""nn.Embedding and nn.EmbeddingBag: off unless where= names them, then by rates and structure."""

import dataclasses

import pytest
import torch
from block_oracle import RATES, check_updates, remodeled_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bouton

KINDS = [nn.Embedding, nn.EmbeddingBag]
over_kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
OF_ROWS = {name: mechanism for name, mechanism in RATES.items() if not isinstance(mechanism, bouton.Grapes)}
NAMED = ["tokens", "h*"]


class Net(nn.Module):
    def __init__(self, kind, tokens=7, width=4, **options):
        super().__init__()
        self.tokens = kind(tokens, width, **options)
        self.hidden, self.head = nn.Linear(width, width), nn.Linear(width, 2)
        self.double()

    def forward(self, x):
        found = self.tokens(x)
        return self.head(torch.tanh(self.hidden(found if found.ndim == 2 else found.mean(1))))


def loss(net):
    x = torch.arange(12).reshape(3, 4) % net.tokens.num_embeddings
    return net(x).square().mean()


def attached(net, mechanism):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return optimizer, bouton.attach(net, optimizer, [mechanism])


def reasons(handle):
    return {row.weight: row.left_because for row in handle.report().rows}


@over_kinds
@pytest.mark.parametrize(
    "mechanism", [bouton.PlasticityDiversity(), bouton.SpineRemodeling(every=1)], ids=str
)
def test_off_unless_named(kind, mechanism):
    net = Net(kind)
    before = net.tokens.weight.detach().clone()
    optimizer, handle = attached(net, mechanism)
    assert reasons(handle)["tokens.weight"] == "an embedding, which where= must name to be taken"
    loss(net).backward()
    gradient = net.tokens.weight.grad
    optimizer.step()
    assert torch.equal(net.tokens.weight, before - 0.1 * gradient)
    handle.detach()
    for where in (NAMED, "*", lambda path, module: True):
        _, handle = attached(net, dataclasses.replace(mechanism, where=where))
        assert reasons(handle)["tokens.weight"] is None
        handle.detach()


@over_kinds
@pytest.mark.parametrize("mechanism", OF_ROWS.values(), ids=OF_ROWS)
@given(tokens=st.integers(2, 8), width=st.integers(1, 5))
@settings(max_examples=10)
def test_updates_equal_the_oracle(kind, mechanism, tokens, width):
    net = Net(kind, tokens, width)
    check_updates(net, loss, dataclasses.replace(mechanism, where=NAMED), {"tokens.weight": (1, None)})


@over_kinds
def test_remodeling_equals_the_oracle(kind):
    remodeled_by_hand(Net(kind), loss, {"tokens.weight": (1, None)}, where="*")


@over_kinds
@pytest.mark.parametrize("padding", [0, 6, -1])
@pytest.mark.parametrize("redraw", ["init", "published"])
def test_the_row_for_padding_stays(kind, padding, redraw):
    net = Net(kind, padding_idx=padding)
    mechanisms = [
        bouton.SpineRemodeling(every=1, d_re=0.01, redraw=redraw, where=NAMED),  # all but the largest
        bouton.PlasticityDiversity(where=NAMED),
    ]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    handle = bouton.attach(net, optimizer, mechanisms)
    start = net.tokens.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()
    handle.remodel()
    assert not net.tokens.weight[padding].any()
    changed = net.tokens.weight != start
    changed[padding] = True
    assert changed.all()
    events = handle.stats()["SpineRemodeling"]["tokens.weight"]
    assert events["changed"] <= events["events"] * 6 * 4  # the row is not counted either


@over_kinds
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sparse": True}, "sparse=True gives gradients that hold only some rows; use sparse=False"),
        ({"max_norm": 1.0}, "max_norm= rescales rows in the forward pass"),
    ],
    ids=["sparse", "max_norm"],
)
def test_what_cannot_be_right_is_refused(kind, options, reason):
    for mechanism in (bouton.Crystallization(where=NAMED), bouton.SpineRemodeling(where=NAMED)):
        _, handle = attached(Net(kind, **options), mechanism)
        assert reason in reasons(handle)["tokens.weight"]
    with pytest.raises(ValueError, match=reason.partition(" ")[0]):
        attached(Net(kind, **options), bouton.Crystallization(where="tokens"))


@over_kinds
@pytest.mark.parametrize(
    ("mechanism", "reason"),
    [
        (bouton.Grapes(where="*"), "looks rows up: no node sums over synapses"),
        (bouton.Grapes(mode="local", where="*"), "rows are looked up, so that no node has a share"),
        (bouton.MultiSynapse(where="*"), "looks rows up: no node sums over synapses"),
        (bouton.FeedbackAlignment(where="*"), "looks rows up: no node sums over synapses"),
        (bouton.DalePrinciple(where="*"), "rows are looked up, so that no node sums over synapses"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_row_is_no_node(kind, mechanism, reason):
    _, handle = attached(Net(kind), mechanism)
    assert reason in reasons(handle)["tokens.weight"]


class Tied(nn.Module):
    """A read-out that shares its weight with the embedding."""

    def __init__(self, **options):
        super().__init__()
        self.tokens = nn.Embedding(7, 4, **options)
        self.hidden, self.head = nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.tokens.weight
        self.double()

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(self.tokens(x)))).mean(1)


@pytest.mark.parametrize("mechanism", OF_ROWS.values(), ids=OF_ROWS)
def test_a_tied_embedding_is_the_read_outs_weight_and_counts_once(mechanism):
    _, handle = attached(Tied(), mechanism)
    assert reasons(handle) == {"head.weight": None, "hidden.weight": None}
    assert handle.report().rows[0].shared_with == ("tokens.weight",)
    check_updates(Tied(), loss, mechanism, {})


def test_a_tied_embedding_is_as_the_read_out_to_grapes():
    _, handle = attached(Tied(), bouton.Grapes(mode="local", where="*"))
    assert reasons(handle) == {"head.weight": "the read-out is never modulated", "hidden.weight": None}
    assert handle.report().readout == ("head",)
