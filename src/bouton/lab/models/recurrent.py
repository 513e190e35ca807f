"""Recurrent nets, made of cells that a loop steps through time."""

from __future__ import annotations

from torch import Tensor, nn

from bouton.lab.dataset import Dataset
from bouton.lab.models.sequence import Sequence, sequence_of

WIDTH = 128


class Recurrent(nn.Module):
    """A recurrent cell, and a read-out of its state after the last time step.

    A cell and not `nn.RNN` or `nn.LSTM`: those compute all time steps in one fused call, inside of which
    no hook sees a node's error.

    Args:
        sequence: how samples are read.
        cell: steps from `[sample, feature]` and its state to its next state.
        classes: the number of classes.
    """

    def __init__(self, sequence: Sequence, cell: nn.RNNCell | nn.LSTMCell, classes: int) -> None:
        super().__init__()
        self.sequence, self.cell = sequence, cell
        self.readout = nn.Linear(cell.hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """One number per class, `[sample, class]`."""
        state = None
        for step in self.sequence(x).unbind(1):
            state = self.cell(step, state)
        hidden = state[0] if isinstance(state, tuple) else state  # an LSTM's is (hidden, cell)
        output: Tensor = self.readout(hidden)
        return output


def rnn(dataset: Dataset) -> nn.Module:
    """An Elman net of 128 tanh units, stepped through time, and a read-out of its last state.

    Args:
        dataset: what to fit; `[time, feature]`, `[1, height, width]` or `[1, length]` per sample.

    Raises:
        ValueError: if the samples have another shape.

    Example:
        >>> from bouton.lab.data import digits
        >>> rnn(digits()).cell
        RNNCell(8, 128)
    """
    sequence = sequence_of(dataset, "rnn")
    return Recurrent(sequence, nn.RNNCell(sequence.features, WIDTH), dataset.classes)


def lstm(dataset: Dataset) -> nn.Module:
    """A long short-term memory of 128 units, stepped through time, and a read-out of its last state.

    Args:
        dataset: what to fit; `[time, feature]`, `[1, height, width]` or `[1, length]` per sample.

    Raises:
        ValueError: if the samples have another shape.

    Example:
        >>> from bouton.lab.data import digits
        >>> lstm(digits()).cell
        LSTMCell(8, 128)
    """
    sequence = sequence_of(dataset, "lstm")
    return Recurrent(sequence, nn.LSTMCell(sequence.features, WIDTH), dataset.classes)
