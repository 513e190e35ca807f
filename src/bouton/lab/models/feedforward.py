"""Nets without memory or shortcuts: fully connected and convolutional."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from bouton.lab.dataset import Dataset

WIDTH = 256
CHANNELS = 32


def mlp(dataset: Dataset) -> nn.Module:
    """Two hidden layers of 256 ReLU units.

    Args:
        dataset: what to fit; any shape per sample, flattened.

    Example:
        >>> from bouton.lab.data import mnist1d
        >>> mlp(mnist1d())[1]
        Linear(in_features=40, out_features=256, bias=True)
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(dataset.x_train[0].numel(), WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, dataset.classes),
    )


def cnn(dataset: Dataset) -> nn.Module:
    """Two convolutions of 32 channels with stride 2, a hidden layer of 128, ReLU.

    Args:
        dataset: what to fit; `[channel, length]` or `[channel, height, width]` per sample.

    Raises:
        ValueError: if the samples have neither of the two shapes.
    """
    shape = dataset.x_train.shape[1:]
    if len(shape) not in (2, 3):
        raise ValueError(
            "the model cnn needs samples [channel, length] or [channel, height, width], such as those of "
            f"mnist1d, digits and fashion-mnist; {dataset.name} has {tuple(shape)}. Type --model mlp, "
            "which takes any shape, or give a model of your own"
        )
    conv: Callable[..., nn.Module] = nn.Conv1d if len(shape) == 2 else nn.Conv2d
    positions = 1
    for size in shape[1:]:
        positions *= -(-size // 4)  # each of the two strides halves, rounding up
    return nn.Sequential(
        conv(shape[0], CHANNELS, kernel_size=5, stride=2, padding=2),
        nn.ReLU(),
        conv(CHANNELS, CHANNELS, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(CHANNELS * positions, 128),
        nn.ReLU(),
        nn.Linear(128, dataset.classes),
    )
