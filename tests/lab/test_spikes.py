from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bouton.lab.spikes import MOST_STEPS, SpikeTrains


def draw(samples: int, pixels: int, steps: int, seed: int) -> tuple[SpikeTrains, torch.Tensor]:
    """Spike trains of random images, and the same spikes drawn without packing them."""
    images = torch.randint(256, (samples, pixels), generator=torch.Generator().manual_seed(seed)).byte()
    trains = SpikeTrains.draw(images, steps, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.empty_like(images).random_(0, 255, generator=generator) for _ in range(steps)]
    return trains, torch.stack([(n < images).float() for n in noise], dim=1)


@given(
    samples=st.integers(1, 6),
    pixels=st.integers(1, 5),
    steps=st.integers(1, MOST_STEPS),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_they_are_read_like_the_tensor_that_they_stand_for(samples, pixels, steps, seed, data):
    trains, dense = draw(samples, pixels, steps, seed)
    assert trains.shape == dense.shape and len(trains) == len(dense)
    picked = torch.tensor(data.draw(st.lists(st.integers(0, samples - 1), min_size=1)))
    for index in (data.draw(st.integers(0, samples - 1)), slice(1, 4), slice(None), picked):
        assert torch.equal(trains[index], dense[index])
        assert trains[index].dtype == torch.float32
    assert torch.equal(trains.index_select(0, picked)[:], dense[picked])


def test_a_pixel_spikes_as_often_as_its_intensity_says():
    images = torch.tensor([0, 64, 191, 255], dtype=torch.uint8).expand(4000, 4)
    trains = SpikeTrains.draw(images, 25, torch.Generator().manual_seed(0))
    rate = trains[:].mean((0, 1))
    assert rate[0] == 0 and rate[3] == 1
    # 100000 draws each: the standard deviation of the rate is at most 0.0016
    assert (rate - torch.tensor([0, 64, 191, 255]) / 255).abs().max() < 0.007
    # spikes of different steps have nothing to do with each other
    first, second = trains[:][:, 0, 1:3], trains[:][:, 1, 1:3]
    assert ((first * second).mean(0) - rate[1:3] ** 2).abs().max() < 0.04


@pytest.mark.parametrize(
    ("images", "steps", "message"),
    [
        (torch.zeros(2, 3), 4, "must be bytes"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), 4, r"\(2, 3, 3\)"),
        (torch.zeros(2, 3, dtype=torch.uint8), 0, "1 to 31, found 0"),
        (torch.zeros(2, 3, dtype=torch.uint8), 32, "1 to 31, found 32"),
    ],
)
def test_what_cannot_be_packed_is_refused(images, steps, message):
    with pytest.raises(ValueError, match=message):
        SpikeTrains.draw(images, steps, torch.Generator())
