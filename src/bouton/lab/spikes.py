"""Images as spike trains, held at one bit per time step and pixel."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_STEPS = 31  # bits of an int32 beside its sign


class SpikeTrains:
    """Spikes `[sample, time, pixel]`, drawn once; reading some makes them a tensor of zeros and ones.

    It has what a data set's inputs are used for: a shape, a length, an index and `index_select`. As float32
    the spikes of Fashion-MNIST would take 4.7 GB; the bits of one pixel's train in one int32 take 188 MB.

    Args:
        packed: int32 `[sample, pixel]`; bit `t` says whether the pixel spikes at time step `t`.
        steps: the number of time steps.

    Example:
        >>> bits = torch.tensor([[0b101, 0b010]], dtype=torch.int32)
        >>> SpikeTrains(bits, steps=3)[0]
        tensor([[1., 0.],
                [0., 1.],
                [1., 0.]])
    """

    def __init__(self, packed: Tensor, steps: int) -> None:
        self._packed, self._steps = packed, steps

    @classmethod
    def draw(cls, images: Tensor, steps: int, generator: torch.Generator) -> SpikeTrains:
        """Draws a spike at each time step with a probability of the pixel's intensity.

        Args:
            images: bytes `[sample, pixel]`; 255 is the intensity 1, a spike at every time step.
            steps: the number of time steps.
            generator: of the draws.

        Raises:
            ValueError: if `images` are no bytes, or `steps` is out of range.
        """
        if images.dtype != torch.uint8 or images.dim() != 2:
            raise ValueError(
                f"images must be bytes (torch.uint8) [sample, pixel]; found {images.dtype} of shape "
                f"{tuple(images.shape)}"
            )
        if not 1 <= steps <= MOST_STEPS:
            raise ValueError(f"steps must be 1 to {MOST_STEPS}, found {steps}")
        packed = torch.zeros(images.shape, dtype=torch.int32)
        noise = torch.empty_like(images)
        for step in range(steps):
            noise.random_(0, 255, generator=generator)  # 0 to 254, so that k of 255 values are below k
            packed |= (noise < images).int().bitwise_left_shift_(step)
        return cls(packed, steps)

    @property
    def shape(self) -> torch.Size:
        """`[sample, time, pixel]`."""
        return torch.Size((len(self._packed), self._steps, self._packed.shape[1]))

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """The spikes of one sample or several, float32."""
        steps = torch.arange(self._steps, dtype=torch.int32).unsqueeze(1)
        return ((self._packed[index].unsqueeze(-2) >> steps) & 1).float()

    def index_select(self, dim: int, index: Tensor) -> SpikeTrains:
        """The spike trains of some samples, still packed; `dim` must be 0."""
        return SpikeTrains(self._packed.index_select(dim, index), self._steps)
