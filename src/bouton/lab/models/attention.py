"""A small transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bouton.lab.dataset import Dataset
from bouton.lab.models.sequence import Sequence, sequence_of

WIDTH, HEADS, LAYERS, FEEDFORWARD = 64, 4, 2, 128


class Transformer(nn.Module):
    """Tokens with learned positions, encoder layers, the mean over the tokens, a read-out.

    Without dropout, so that arms of one seed differ by their mechanisms alone.

    Args:
        sequence: how samples are read; each time step is a token.
        classes: the number of classes.
    """

    def __init__(self, sequence: Sequence, classes: int) -> None:
        super().__init__()
        self.sequence = sequence
        self.embedding = nn.Linear(sequence.features, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(sequence.steps, WIDTH))
        # not nn.TransformerEncoder, which copies one layer, so that all start from the same weights
        layers = [
            nn.TransformerEncoderLayer(WIDTH, HEADS, FEEDFORWARD, dropout=0.0, batch_first=True)
            for _ in range(LAYERS)
        ]
        self.encoder = nn.Sequential(*layers)
        self.readout = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        """One number per class, `[sample, class]`."""
        tokens = self.embedding(self.sequence(x)) + self.position
        output: Tensor = self.readout(self.encoder(tokens).mean(1))
        return output


def transformer(dataset: Dataset) -> nn.Module:
    """Two encoder layers of width 64 with 4 heads over the time steps or image rows, mean-pooled.

    Args:
        dataset: what to fit; `[time, feature]`, `[1, height, width]` or `[1, length]` per sample.

    Raises:
        ValueError: if the samples have another shape.

    Example:
        >>> from bouton.lab.data import digits
        >>> transformer(digits()).embedding
        Linear(in_features=8, out_features=64, bias=True)
    """
    return Transformer(sequence_of(dataset, "transformer"), dataset.classes)
