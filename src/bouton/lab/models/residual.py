"""A residual net for small images."""

from __future__ import annotations

from torch import Tensor, nn

from bouton.lab.dataset import Dataset

CHANNELS = (16, 32, 64, 128)
SMALLEST = 8  # of an image's sides: three poolings halve it


class Residual(nn.Module):
    """Adds two convolutions to their input.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(channels, channels), _convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        change: Tensor = self.second(self.first(x))
        return x + change


def resnet9(dataset: Dataset) -> nn.Module:
    """A residual net of 8 convolutions of 16 to 128 channels with batch normalisation, and a read-out.

    The net known as ResNet-9 from the DAWNBench competition (D. Page, "How to train your ResNet", 2018),
    a quarter as wide, so that a CPU trains it.

    Args:
        dataset: what to fit; `[channel, height, width]` per sample, 8x8 or larger.

    Raises:
        ValueError: if the samples have another shape.

    Example:
        >>> from bouton.lab.data import digits
        >>> sum(isinstance(module, nn.Conv2d) for module in resnet9(digits()).modules())
        8
    """
    shape = tuple(dataset.x_train.shape[1:])
    if len(shape) != 3 or min(shape[1:]) < SMALLEST:
        raise ValueError(
            f"the model resnet9 needs images [channel, height, width] of {SMALLEST}x{SMALLEST} or more, "
            f"such as those of fashion-mnist and digits; {dataset.name} has samples of shape {shape}. Type "
            "--model mlp, which takes any shape, or give a model of your own"
        )
    first, second, third, last = CHANNELS
    return nn.Sequential(
        _convolution(shape[0], first),
        _convolution(first, second),
        nn.MaxPool2d(2),
        Residual(second),
        _convolution(second, third),
        nn.MaxPool2d(2),
        _convolution(third, last),
        nn.MaxPool2d(2),
        Residual(last),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(last, dataset.classes),
    )


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
