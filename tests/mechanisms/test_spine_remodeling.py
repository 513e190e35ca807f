import math
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import bouton
from bouton.sites import RandomStream, Synapses
from bouton.tensors import draws

DATA = Path(__file__).parent.parent / "data" / "diversity.npz"
DRAWS = 4000  # as many as the published shares were counted over


def events(weight, count=DRAWS, **arguments):
    """Masks and values of ``count`` independent events on one weight."""
    synapses = Synapses(weight, stream=RandomStream(0, "test"))
    rule = bouton.SpineRemodeling(**arguments).rule
    masks, values = zip(*(rule(synapses) for _ in range(count)), strict=True)
    return torch.stack(masks), torch.stack(values)


@pytest.mark.parametrize("case", [0, 1])
def test_agrees_with_the_published_code(case):
    with np.load(DATA) as file:
        weight = torch.from_numpy(file[f"crystallize/{case}/weight"])  # the weight of this case, too
        shares = torch.from_numpy(file[f"rejuvenate/{case}/replaced_fraction"])
        mean, std = file[f"rejuvenate/{case}/new_mean"].item(), file[f"rejuvenate/{case}/new_std"].item()
    masks, values = events(weight, redraw="published")
    ours = masks.double().mean(0)
    exact = oracles.replaced_share(weight, d_re=8.0)
    error = (exact * (1 - exact) / DRAWS).sqrt()
    # a share near 0 or 1 is counted in whole draws, so that no error is below one of them
    assert ((ours - exact).abs() <= 4 * error + 1 / DRAWS).all()
    assert ((ours - shares).abs() <= 4 * error * 2**0.5 + 1 / DRAWS).all()
    new = values[masks]
    published_count = shares.sum().item() * DRAWS
    spread = weight.abs().max().item() / 3**0.5
    assert abs(new.mean().item() - mean) < 4 * spread * (1 / len(new) + 1 / published_count) ** 0.5
    assert new.std().item() == pytest.approx(std, rel=0.01)


def test_default_redraws_from_the_fan_in_distribution():
    weight = torch.randn(10, 25, generator=torch.Generator().manual_seed(0))
    masks, values = events(weight, count=500)
    new = values[masks]
    assert 0.198 < new.abs().max() <= 0.2
    assert abs(new.mean()) < 4 * 0.2 / 3**0.5 / len(new) ** 0.5


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 2)),
    d_re=st.sampled_from([0.5, 2.0, 8.0]),
    redraw=st.sampled_from(["init", "published"]),
    seed=st.integers(0, 9),
)
def test_one_event_equals_the_oracle(shape, d_re, redraw, seed):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    synapses = Synapses(weight, stream=RandomStream(seed, "test"))
    uniform = synapses.uniform(2**-24, 1 + 2**-24)
    synapses.stream.count = 0  # the same draw again
    changed, values = bouton.SpineRemodeling(d_re=d_re, redraw=redraw).rule(synapses)
    expected = oracles.remodeled(weight, uniform, d_re, published=redraw == "published")
    torch.testing.assert_close(torch.where(changed, values, weight), expected)


def test_new_weights_are_uniform_whatever_the_old_ones_were():
    weight = torch.linspace(0, 0.5, 21).repeat(4000, 1)
    weight[0, 0] = 1.0
    changed, values = bouton.SpineRemodeling(d_re=4.0).rule(Synapses(weight, stream=RandomStream(1, "law")))
    for old, turned, new in zip(weight[1], changed[1:].T, values[1:].T, strict=True):
        share = math.erfc(old.item() * 4 / 2**0.5)
        assert stats.binomtest(turned.sum().item(), 3999, share).pvalue > 1e-4
        assert stats.kstest((new[turned] * 21**0.5 / 2 + 0.5).numpy(), "uniform").pvalue > 1e-4


def test_the_smallest_draw_that_there_is_replaces_no_large_weight(monkeypatch):
    lowest = torch.tensor([-(2**31)], dtype=torch.int32)  # of the 2**32 numbers that draws are made of
    monkeypatch.setattr(draws, "_fill", lambda made, key, start: made.copy_(lowest.expand(made.shape)))
    weight = torch.tensor([[1.0, 0.5, 1e-4, 0.0]], dtype=torch.float64)  # of which torch makes the draws
    changed, values = bouton.SpineRemodeling().rule(Synapses(weight))
    assert changed.tolist() == [[False, True, True, True]]
    assert (values[changed] < 0).all() and (values[changed] >= -0.5).all()


@given(
    shape=st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 3)),
    redraw=st.sampled_from(["init", "published"]),
    seed=st.integers(0, 9),
)
def test_other_weights_keep_their_bits_and_their_moments(shape, redraw, seed):
    generator = torch.Generator().manual_seed(seed)
    nodes, inputs, kernel = shape
    layer = nn.Conv1d(inputs, nodes, kernel, bias=False)
    layer.weight.data.normal_(generator=generator)
    optimizer = torch.optim.Adam(layer.parameters())
    layer.weight.grad = torch.randn(layer.weight.shape, generator=generator)
    optimizer.step()
    before = layer.weight.detach().clone()
    moment = optimizer.state[layer.weight]["exp_avg"].clone()
    handle = bouton.attach(layer, optimizer, [bouton.SpineRemodeling(d_re=1.0, redraw=redraw)], seed=seed)
    handle.remodel()
    changed = layer.weight != before
    assert handle.stats()["SpineRemodeling"]["weight"]["changed"] == changed.sum()
    after = optimizer.state[layer.weight]["exp_avg"]
    assert torch.equal(after, moment.masked_fill(changed, 0))


def test_fires_at_every_so_many_steps_and_no_other():
    layer = nn.Linear(40, 40)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    handle = bouton.attach(layer, optimizer, [bouton.SpineRemodeling(every=3)])
    fired = []
    for _ in range(7):
        before = layer.weight.detach().clone()
        layer(torch.randn(4, 40)).sum().backward()
        optimizer.step()
        fired.append(not torch.equal(before, layer.weight))
    assert fired == [False, False, True, False, False, True, False]
    stats = handle.stats()["SpineRemodeling"]["weight"]
    assert stats["events"] == 2
    assert stats["turnover"] == stats["changed"] / 2 / 1600


@pytest.mark.parametrize("wrong", [{"every": 0}, {"every": 2.5}, {"d_re": 0}, {"redraw": "zero"}])
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=r"SpineRemodeling\(" + next(iter(wrong))):
        bouton.SpineRemodeling(**wrong)
