"""Memory that is used again: nothing that was kept in it is lost, and it never stands in the way."""

import threading

import pytest
import torch
from subjects import EXAMPLES, over_examples
from torch import nn

import bouton
from bouton.mechanisms import fluctuation
from bouton.tensors import draws, scratch


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """As in a fresh process."""
    monkeypatch.setattr(scratch, "_KEPT", scratch._Kept())
    for cached in (draws._counted, fluctuation._table):
        cached.cache_clear()
    yield
    for cached in (draws._counted, fluctuation._table):
        cached.cache_clear()


def attached(mechanism):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer, bouton.attach(model, optimizer, [mechanism], seed=1)


def train(model, optimizer, steps=3):
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 6, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_memory_of_one_name_is_the_same_and_of_another_is_not():
    like = torch.empty(3, 4)
    first = scratch.scratch("a", like)
    assert first.shape == like.shape and first.dtype == like.dtype
    assert scratch.scratch("a", like).data_ptr() == first.data_ptr()
    assert scratch.scratch("a", torch.empty(2, 2)).data_ptr() == first.data_ptr()
    assert scratch.scratch("b", like).data_ptr() != first.data_ptr()
    assert scratch.scratch("a", like, torch.float64).data_ptr() != first.data_ptr()
    larger = scratch.scratch("a", torch.empty(30, 40))
    assert larger.shape == (30, 40) and scratch.scratch("a", like).data_ptr() == larger.data_ptr()


def test_large_tensors_and_those_in_another_order_have_memory_of_their_own(monkeypatch):
    monkeypatch.setattr(scratch, "PIECE", 10)
    for like in (torch.empty(3, 7), torch.empty(4, 3).T, torch.empty(2, 2, device="meta")):
        made = scratch.scratch("a", like)
        assert (made.shape, made.stride(), made.device) == (like.shape, like.stride(), like.device)
    assert not scratch._KEPT.buffers


def test_threads_do_not_share_memory():
    places = []
    first = scratch.scratch("a", torch.empty(5))
    thread = threading.Thread(target=lambda: places.append(scratch.scratch("a", torch.empty(5))))
    thread.start()
    thread.join()
    assert places[0].data_ptr() != first.data_ptr()


@over_examples
def test_an_evaluation_in_inference_mode_comes_before_training(mechanism):
    expected = train(*attached(mechanism)[:2])
    scratch._KEPT.buffers.clear(), scratch._KEPT.views.clear()
    model, optimizer, handle = attached(mechanism)
    model.eval()
    with torch.inference_mode():
        model(torch.ones(2, 6))
        handle.stats()
    model.train()
    assert all(torch.equal(*pair) for pair in zip(train(model, optimizer), expected, strict=True))


@over_examples
def test_another_default_device_does_not_matter(mechanism):
    expected = train(*attached(mechanism)[:2])
    scratch._KEPT.buffers.clear(), scratch._KEPT.views.clear()
    model, optimizer, _ = attached(mechanism)
    draws._counted.cache_clear(), fluctuation._table.cache_clear()
    with torch.device("meta"):
        for step in range(3):
            with torch.device("cpu"):
                x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert all(torch.equal(p.detach(), e) for p, e in zip(model.parameters(), expected, strict=True))


@pytest.mark.parametrize("first", [name for name, m in EXAMPLES.items() if m.site == "rate"])
def test_what_a_rule_returned_stays_when_others_are_asked(first):
    model, optimizer, handle = attached(EXAMPLES[first])
    train(model, optimizer, 1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    returned = [
        claim.rate(group.weight.detach(), group.weight.grad, group.beside())
        for group, claim in handle._claims
    ]
    kept = [rate.clone() for rate in returned]
    for name, mechanism in EXAMPLES.items():
        if mechanism.site == "rate" and name != first:
            train(*attached(mechanism)[:2], 1)
    assert all(torch.equal(*pair) for pair in zip(returned, kept, strict=True))
