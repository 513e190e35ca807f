"""Counter-based random numbers: the formula to the bit, their laws, and what a part of them depends on."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import random_normal, random_short, random_uniform, random_word, with_sign
from scipy import stats

from bouton.sites import RandomStream, Synapses
from bouton.tensors import draws
from bouton.tensors.draws import bits, normal, short_bits, uniform

COUNT = 1 << 18
CHANCE = 1e-4  # of a right generator to fail one of the tests of a law
KEYS = [(0, 0), (1, 2), (0xFFFFFFFF, 0x80000000), RandomStream(3, "a").key()]
DRAWS = {"bits": bits, "short_bits": short_bits}
SHAPED = {"uniform": uniform, "normal": normal}

words = st.integers(0, 2**32 - 1)
keys = st.tuples(words, words)
over_keys = pytest.mark.parametrize("key", KEYS, ids=str)


def as_correlation(first, second):
    """The correlation of two sequences in its standard errors; -4 to 4 where they are independent."""
    return torch.corrcoef(torch.stack([first, second]))[0, 1].item() * len(first) ** 0.5


@given(key=keys, count=st.integers(0, 40), start=st.integers(0, 2**32 - 1))
def test_numbers_equal_the_oracle(key, count, start):
    places = range(start, start + count)
    assert bits(key, count, start=start).tolist() == [with_sign(random_word(key, i), 32) for i in places]
    assert short_bits(key, count, start=start).tolist() == [random_short(key, i) for i in places]
    expected = torch.tensor([random_uniform(key, i) for i in places], dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):  # 24 bits are exact in both
        found = uniform(key, (count,), dtype, start=start)
        assert found.dtype == dtype and torch.equal(found.double(), expected)
    wanted = torch.tensor([random_normal(key, i) for i in places], dtype=torch.float64)
    found = normal(key, (count,), torch.float64, start=start)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    found = normal(key, (count,), torch.float32, start=start)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-6)


@given(key=keys, low=st.floats(-3, 3), width=st.floats(1e-3, 5), start=st.integers(0, 99))
def test_bounds_of_a_uniform_draw(key, low, width, start):
    high = low + width
    found = uniform(key, (3, 4), torch.float64, start=start, low=low, high=high)
    expected = [low + (high - low) * random_uniform(key, start + i) for i in range(12)]
    expected = torch.tensor(expected, dtype=torch.float64).view(3, 4)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert ((found >= low - 1e-12) & (found < high)).all()


@pytest.mark.parametrize("piece", [1, 7, 64])
@pytest.mark.parametrize("name", [*DRAWS, *SHAPED])
def test_a_part_equals_the_same_part_of_the_whole(name, piece, monkeypatch):
    monkeypatch.setattr(draws, "PIECE", piece)  # draws are made in pieces

    def drawn(start, count):
        if name in DRAWS:
            return DRAWS[name]((5, 6), count, start=start)
        return SHAPED[name]((5, 6), (count,), torch.float32, start=start)

    whole = drawn(0, 200)
    for start, count in itertools.product((0, 1, 2, 63, 64, 65), (0, 1, 2, 7, 64, 65, 130)):
        assert torch.equal(drawn(start, count), whole[start : start + count])


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(0, 4), st.integers(1, 3)),
    first=st.integers(0, 5),
    count=st.integers(0, 5),
    start=st.integers(0, 9),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_some_nodes_draw_what_they_draw_as_a_part_of_the_whole(shape, first, count, start, dtype):
    def synapses():
        return Synapses(torch.zeros(shape, dtype=dtype), stream=RandomStream(1, "x"), start=start)

    some = slice(first, first + count)
    for draw in (lambda own: own.uniform(-1, 2), lambda own: own.normal()):
        part = draw(synapses().rows(first, first + count))
        assert part.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.equal(part, draw(synapses())[some])


def test_draws_are_those_of_the_stream_and_of_no_other():
    def drawn(seed, name, count):
        return Synapses(torch.empty(100), stream=RandomStream(seed, name, count)).uniform(0, 1)

    streams = itertools.product((0, 1), ("a", "b"), (0, 1))
    seen = [drawn(*stream) for stream in streams]
    assert torch.equal(drawn(0, "a", 0), seen[0])
    assert all(not torch.equal(first, second) for first, second in itertools.combinations(seen, 2))
    stream = RandomStream(0, "a")
    own = Synapses(torch.empty(100), stream=stream)
    assert torch.equal(own.uniform(0, 1), seen[0]) and torch.equal(own.uniform(0, 1), seen[1])
    assert stream.count == 2


@over_keys
def test_every_bit_is_even(key):
    found = bits(key, COUNT)
    for place in range(32):
        ones = ((found >> place) & 1).sum().item()
        assert stats.binomtest(ones, COUNT).pvalue > CHANCE / 32


@over_keys
def test_bytes_and_halves_are_even(key):
    found = bits(key, COUNT)
    for shift in range(0, 32, 8):
        counts = torch.bincount((found >> shift) & 255, minlength=256)
        assert stats.chisquare(counts.numpy()).pvalue > CHANCE
    halves = short_bits(key, 2 * COUNT)
    assert {halves.min().item(), halves.max().item()} == {-(2**15), 2**15 - 1}
    for some in (halves, halves[::2], halves[1::2]):
        assert stats.kstest((some.double() + 0.5) / 2**16 + 0.5, "uniform").pvalue > CHANCE
    assert abs(as_correlation(halves[::2].double(), halves[1::2].double())) < 4


@over_keys
def test_uniform_and_normal_follow_their_laws(key):
    assert stats.kstest(uniform(key, (COUNT,), torch.float32).numpy(), "uniform").pvalue > CHANCE
    drawn = normal(key, (COUNT,), torch.float64).numpy()
    assert stats.kstest(drawn, "norm").pvalue > CHANCE
    assert abs(stats.kurtosis(drawn)) < 4 * math.sqrt(24 / COUNT)
    assert 4 < abs(drawn).max() < 5.9


@over_keys
def test_numbers_do_not_depend_on_those_before(key):
    drawn = {"uniform": uniform, "normal": normal}
    for draw in drawn.values():
        found = draw(key, (COUNT,), torch.float64)
        for lag in (*range(1, 34), 64, 100, 128, 256, 1000, 1024, 4096, 2**16, 2**17):
            assert abs(as_correlation(found[lag:], found[:-lag])) < 4.5
    # not in a way that a correlation does not show, either: the first four bits of pairs
    for some in (bits(key, COUNT) >> 28, short_bits(key, COUNT).int() >> 12):
        for lag in (1, 2, 16, 256, 2**16):
            first, second = (some + 8).bitwise_and(15).view(-1, 2, lag).unbind(1)
            counts = torch.bincount((16 * first + second).flatten(), minlength=256)
            assert stats.chisquare(counts.numpy()).pvalue > CHANCE


def test_keys_that_differ_in_one_bit_draw_otherwise():
    key, drawn = KEYS[3], uniform(KEYS[3], (COUNT,), torch.float64)
    for word, place in itertools.product((0, 1), range(32)):
        other = list(key)
        other[word] ^= 1 << place
        assert abs(as_correlation(drawn, uniform(tuple(other), (COUNT,), torch.float64))) < 4.5


def test_streams_are_independent_of_each_other():
    shape = (64, 256)  # each row a stream: draws, names and seeds that follow each other
    names = [(seed, f"layer{name}", draw) for seed in range(4) for name in range(4) for draw in range(4)]
    drawn = torch.stack([uniform(RandomStream(*name).key(), (4096,), torch.float64) for name in names])
    found = torch.corrcoef(drawn)[*torch.triu_indices(*shape[:1] * 2, 1)] * 4096**0.5
    assert found.abs().max() < 5  # of 2016 pairs
    assert stats.kstest(found.numpy(), "norm").pvalue > CHANCE
    # place by place, over the streams
    first = torch.stack([uniform((n, n * n), shape[1:], torch.float64) for n in range(512)])
    assert stats.kstest(first[:, 0].numpy(), "uniform").pvalue > CHANCE
