"""The data sets of the lab: small, labelled, and the same for everyone who loads them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bouton.lab.dataset import Dataset
from bouton.lab.fashion_mnist import read_fashion_mnist
from bouton.lab.spikes import SpikeTrains

SPIKE_STEPS = 25
SPIKE_SEED = 0


def mnist1d() -> Dataset:
    """MNIST-1D: 4000 + 1000 generated signals of 40 samples, ten classes."""
    from mnist1d.data import get_dataset_args, make_dataset

    # The generator seeds the global randomness of numpy and random: give both back as found.
    numpy_state, random_state = np.random.get_state(), random.getstate()
    try:
        made = make_dataset(get_dataset_args())
    finally:
        np.random.set_state(numpy_state)
        random.setstate(random_state)
    return Dataset.of("mnist1d", made["x"][:, None], made["y"], made["x_test"][:, None], made["y_test"])


def digits() -> Dataset:
    """scikit-learn's digits: 1437 + 360 images of 8x8, ten classes."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        x.reshape(-1, 1, 8, 8), y, test_size=0.2, stratify=y, random_state=0
    )
    return _standardised("digits", x_train, y_train, x_test, y_test)


def fashion_mnist() -> Dataset:
    """Fashion-MNIST: 60000 + 10000 images of 28x28, ten classes."""
    x_train, y_train, x_test, y_test = read_fashion_mnist()
    return _standardised("fashion-mnist", x_train[:, None], y_train, x_test[:, None], y_test)


def sequential_fashion_mnist() -> Dataset:
    """Fashion-MNIST row by row: each of an image's 28 rows is a time step of 28 values."""
    x_train, y_train, x_test, y_test = read_fashion_mnist()
    return _standardised("sequential-fashion-mnist", x_train, y_train, x_test, y_test)


def rate_coded_fashion_mnist() -> Dataset:
    """Fashion-MNIST as spikes: 25 time steps, at each a pixel spikes with its intensity as probability.

    The spikes are drawn once, from a generator of their own: they belong to the data, so that every model,
    arm and epoch sees the same ones. They are held as bits, and a batch becomes a float32 tensor
    `[sample, 25, 784]` when it is read.
    """
    x_train, y_train, x_test, y_test = read_fashion_mnist()
    generator = torch.Generator().manual_seed(SPIKE_SEED)
    train, test = (
        SpikeTrains.draw(torch.tensor(x).flatten(1), SPIKE_STEPS, generator) for x in (x_train, x_test)
    )
    labels = [torch.tensor(y).long() for y in (y_train, y_test)]
    return Dataset("rate-coded-fashion-mnist", train, labels[0], test, labels[1], classes=10)


DATASETS: dict[str, Callable[[], Dataset]] = {
    "mnist1d": mnist1d,
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "sequential-fashion-mnist": sequential_fashion_mnist,
    "rate-coded-fashion-mnist": rate_coded_fashion_mnist,
}


def _standardised(name: str, x_train: Any, y_train: Any, x_test: Any, y_test: Any) -> Dataset:
    """Scales the inputs by the mean and standard deviation over all of the training split."""
    train, test = (torch.tensor(x).float() for x in (x_train, x_test))
    mean, std = train.mean(), train.std()
    return Dataset.of(name, (train - mean) / std, y_train, (test - mean) / std, y_test)
