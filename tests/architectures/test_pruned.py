"""Weights under torch.nn.utils.prune: what is pruned stays pruned, and rules see the pruned weight."""

import pytest
import torch
from block_oracle import RATES, rate_by_hand
from torch import nn
from torch.nn.utils import prune

import bouton
from bouton.sites import RandomStream

EXAMPLES = [example for entry in bouton.registry().values() for example in entry.examples]


def iteratively(layer):
    prune.random_unstructured(layer, "weight", 0.3)
    prune.l1_unstructured(layer, "weight", 0.3)


def by_hand(layer):
    mask = (torch.arange(layer.weight.numel()) % 3 > 0).reshape(layer.weight.shape)
    prune.custom_from_mask(layer, "weight", mask)


CHANGES = {
    "l1": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "columns": lambda layer: prune.ln_structured(layer, "weight", 0.5, n=2, dim=1),
    "nodes": lambda layer: prune.ln_structured(layer, "weight", 0.5, n=1, dim=0),
    "iterative": iteratively,
    "by hand": by_hand,
}
over_changes = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}
over_optimizers = pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


def build(change):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(2, 8, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(24, 8),
        nn.Tanh(),
        nn.Linear(8, 4),
        nn.Linear(4, 2),
    ).double()
    for place in (0, 3, 5):
        change(net[place])
    return net


def pruned(net):
    return {place: net[place].weight_mask == 0 for place in (0, 3, 5)}


def backward(net, seed):
    net.zero_grad()
    x = torch.randn(6, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(net(x), torch.arange(6) % 2).backward()


def train(net, optimizer, steps=5):
    for step in range(steps):
        backward(net, step)
        optimizer.step()
    backward(net, steps)  # sets each weight anew


@over_changes
@over_optimizers
@pytest.mark.parametrize("mechanism", EXAMPLES, ids=repr)
def test_what_is_pruned_stays_pruned(mechanism, make_optimizer, change):
    net = build(change)
    optimizer = make_optimizer(net.parameters())
    before = pruned(net)
    taken = [
        row for row in bouton.attach(net, optimizer, [mechanism]).report().rows if not row.left_because
    ]
    assert any(row.weight.endswith("_orig") for row in taken)
    train(net, optimizer)
    for place, mask in before.items():
        assert torch.equal(net[place].weight_mask == 0, mask)
        assert not net[place].weight[mask].any()
        assert mask.any()
        if not isinstance(mechanism, bouton.DalePrinciple):  # which makes zeros of its own
            assert net[place].weight[~mask].all()


@over_changes
@over_optimizers
@pytest.mark.parametrize("redraw", ["init", "published"])
def test_no_pruned_synapse_is_rewired(redraw, make_optimizer, change):
    """At a rate of nearly all synapses in every step, those that are pruned are as in plain training."""
    net, plain = build(change), build(change)
    optimizer, plain_optimizer = make_optimizer(net.parameters()), make_optimizer(plain.parameters())
    rows = bouton.attach(net, optimizer, [bouton.SpineRemodeling(every=1, d_re=0.01, redraw=redraw)])
    train(net, optimizer), train(plain, plain_optimizer)
    for place, mask in pruned(net).items():
        assert torch.equal(net[place].weight_orig[mask], plain[place].weight_orig[mask])
        assert not torch.equal(net[place].weight_orig[~mask], plain[place].weight_orig[~mask])
        for name, value in optimizer.state[net[place].weight_orig].items():
            if value.shape == mask.shape:
                assert torch.equal(value[mask], plain_optimizer.state[plain[place].weight_orig][name][mask])
        counted = rows.stats()["SpineRemodeling"][f"{place}.weight_orig"]
        assert 0 < counted["changed"] <= counted["events"] * (~mask).sum()


@over_changes
@pytest.mark.parametrize("mechanism", RATES.values(), ids=RATES)
def test_rates_see_the_pruned_weight_and_scale_the_stored_one(mechanism, change):
    net, plain = build(change), build(change)
    optimizer, plain_optimizer = (torch.optim.SGD(other.parameters(), lr=0.1) for other in (net, plain))
    bouton.attach(net, optimizer, [mechanism])
    backward(net, 0), backward(plain, 0)
    before = {
        place: (net[place].weight_orig.detach().clone(), net[place].weight.detach()) for place in (0, 3, 5)
    }
    optimizer.step(), plain_optimizer.step()
    for place, (stored, weight) in before.items():
        gradient = net[place].weight_orig.grad
        stream = RandomStream(0, f"{type(mechanism).__name__}/{place}.weight_orig")
        rate = rate_by_hand(mechanism, weight, gradient, None, stream, None)
        update = plain[place].weight_orig.detach() - stored
        torch.testing.assert_close(
            net[place].weight_orig.detach(), stored + rate * update, rtol=0, atol=1e-14
        )


@over_changes
def test_the_propagated_factor_is_that_of_the_pruned_weight(change):
    net, plain = build(change), build(change)
    bouton.attach(net, None, [bouton.Grapes(clip=None, where="5")])
    backward(net, 0), backward(plain, 0)
    total = net[5].weight.detach().abs().sum(1)
    torch.testing.assert_close(net[5].bias.grad, plain[5].bias.grad * 2 * total / total.max())


def named(net, optimizer, mechanism):
    return bouton.attach(net, optimizer, [mechanism], seed=1)


@pytest.mark.parametrize(
    "mechanism", [bouton.PlasticityDiversity(), bouton.SpineRemodeling(every=1)], ids=str
)
def test_pruning_and_making_it_lasting_while_attached_are_errors(mechanism):
    net = build(CHANGES["l1"])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = named(net, optimizer, mechanism)
    prune.remove(net[0], "weight")
    message = r"{} is another parameter than at bouton.attach \(replaced, pruned.*detach the handle before"
    with pytest.raises(ValueError, match=message.format(r"0\.weight_orig")):
        optimizer.step(), handle.remodel()
    handle.detach()
    handle = named(net, optimizer, mechanism)  # and goes on after
    backward(net, 0)
    optimizer.step()
    prune.l1_unstructured(net[6], "weight", 0.5)
    with pytest.raises(ValueError, match=message.format(r"6\.weight")):
        optimizer.step(), handle.remodel()


def test_pruning_further_while_attached_holds_from_the_next_step():
    net = build(CHANGES["l1"])
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    bouton.attach(
        net, optimizer, [bouton.SpineRemodeling(every=1, d_re=0.01), bouton.PlasticityDiversity()]
    )
    train(net, optimizer, steps=2)
    first = pruned(net)
    for place in first:
        prune.l1_unstructured(net[place], "weight", 0.5)
    train(net, optimizer, steps=3)
    for place, mask in pruned(net).items():
        assert mask.sum() > first[place].sum()
        assert not net[place].weight[mask].any()


def test_checkpoints_keep_their_keys():
    net, plain = build(CHANGES["l1"]), build(CHANGES["columns"])
    keys = list(plain.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = bouton.attach(net, optimizer, [bouton.SpineRemodeling(), bouton.Grapes()])
    assert list(net.state_dict()) == keys
    net.load_state_dict(plain.state_dict(), strict=True)
    handle.detach()
    assert list(net.state_dict()) == keys and not net[0]._forward_hooks
