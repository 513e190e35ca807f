"""Noise that is read from a table: its law at one step and over many, and what a part of it depends on."""

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bouton.mechanisms import fluctuation
from bouton.mechanisms.fluctuation import RUN, SIZE, fluctuate
from bouton.sites import RandomStream, Synapses

CHANCE = 1e-4  # of right noise to fail one of the tests of a law


def noise(shape, stream, spread=0.2, start=0, dtype=torch.float64):
    """The noise on rates of 1."""
    synapses = Synapses(torch.empty(shape, dtype=dtype), stream=stream, start=start)
    return fluctuate(synapses, torch.ones(shape, dtype=dtype), spread)


@contextlib.contextmanager
def short_table():
    """A table that even small layers read several times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fluctuation, "SIZE", 64)
        patch.setattr(fluctuation, "RUN", 20)
        fluctuation._table.cache_clear()
        yield
    fluctuation._table.cache_clear()


@pytest.mark.parametrize("spread", [0.05, 0.2, 0.7])
def test_rates_of_one_step_follow_their_law(spread):
    drawn = noise((100, 1000), RandomStream(1, "law"), spread)
    law = stats.foldnorm(1 / spread, scale=spread)
    assert stats.kstest(drawn.flatten().numpy(), law.cdf).pvalue > CHANCE


def test_rates_of_one_synapse_follow_their_law_over_the_steps():
    stream = RandomStream(2, "steps")
    seen = torch.stack([noise((2, 3), stream).flatten() for _ in range(2000)])
    law = stats.foldnorm(5, scale=0.2)
    for synapse in seen.T:
        assert stats.kstest(synapse.numpy(), law.cdf).pvalue > CHANCE
        assert abs(torch.corrcoef(torch.stack([synapse[1:], synapse[:-1]]))[0, 1]) < 4 / 2000**0.5
    neighbours = torch.corrcoef(seen.T)[*torch.triu_indices(6, 6, 1)]
    assert neighbours.abs().max() < 4 / 2000**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_rate_is_the_given_one(dtype):
    table = fluctuation._table(0.2, dtype)[:SIZE].double()
    assert table.mean().item() == pytest.approx(1, abs=1e-6)
    assert table.std(correction=0).item() == pytest.approx(0.2, rel=1e-6)
    synapses = Synapses(torch.empty(300, 400, dtype=dtype), stream=RandomStream(0, "mean"))
    rate = torch.full((300, 400), 3.0, dtype=dtype)
    found = fluctuate(synapses, rate, 0.2)
    assert found.dtype == dtype
    assert abs(found.double().mean().item() - 3) < 4 * 0.2 * 3 / found.numel() ** 0.5


def test_every_call_draws_anew_and_no_spread_draws_nothing():
    stream = RandomStream(3, "anew")
    calls = [noise((20, 30), stream).flatten() for _ in range(4)]
    assert len({tuple(call.tolist()) for call in calls}) == 4
    assert len(calls[0].unique()) == 600  # and no synapse what its neighbours drew
    assert stream.count == 4
    assert torch.equal(noise((20, 30), stream, spread=0), torch.ones(20, 30, dtype=torch.float64))
    assert stream.count == 4


@given(
    rows=st.integers(1, 9),
    fan_in=st.tuples(st.integers(1, 5), st.integers(1, 3)),
    start=st.integers(0, 50),
    seed=st.integers(0, 3),
)
def test_noise_equals_the_oracle(rows, fan_in, start, seed):
    with short_table():
        table = fluctuation._table(0.2, torch.float64)
        found = noise((rows, *fan_in), RandomStream(seed, "oracle"), start=start).flatten()
    first, second = RandomStream(seed, "oracle").key()
    for place, value in enumerate(found.tolist(), start):
        run, rest = divmod(place, 20)
        begin = (first + run * (second | 1)) % 64
        assert value == table[begin + rest].item() == table[(begin + rest) % 64].item()


@given(first=st.integers(0, 6), count=st.integers(0, 6), start=st.integers(0, 25))
def test_some_nodes_draw_what_they_draw_as_a_part_of_the_whole(first, count, start):
    with short_table():
        whole = noise((6, 7), RandomStream(4, "part"), start=start)
        synapses = Synapses(torch.empty(6, 7), stream=RandomStream(4, "part"), start=start)
        part = synapses.rows(first, first + count)
        found = fluctuate(part, torch.ones(part.weight.shape, dtype=torch.float64), 0.2)
    assert torch.equal(found, whole[first : first + count])


def test_runs_read_from_places_of_their_own():
    drawn = noise((3, RUN), RandomStream(5, "runs"), dtype=torch.float32)
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert not torch.equal(drawn[first], drawn[second])


@pytest.mark.parametrize("axes", [(1, 0), (0, 1)])
def test_the_order_of_memory_does_not_matter(axes):
    synapses = [Synapses(torch.empty(5, 4), stream=RandomStream(6, "order")) for _ in range(2)]
    rate = torch.rand(5, 4, dtype=torch.float64)
    stored = rate.permute(axes).contiguous().permute(axes)
    found = fluctuate(synapses[1], stored.clone(memory_format=torch.preserve_format), 0.2)
    assert torch.equal(found, fluctuate(synapses[0], rate.clone(), 0.2))
