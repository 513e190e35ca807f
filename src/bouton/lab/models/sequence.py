"""How samples are read as sequences."""

from __future__ import annotations

from torch import Tensor, nn

from bouton.lab.dataset import Dataset


class Sequence(nn.Module):
    """Sees `[sample, ...]` as `[sample, time, feature]`.

    Args:
        steps: the number of time steps.
        features: the numbers per time step.
    """

    def __init__(self, steps: int, features: int) -> None:
        super().__init__()
        self.steps, self.features = steps, features

    def forward(self, x: Tensor) -> Tensor:
        """The same numbers, as `[sample, time, feature]`."""
        return x.reshape(len(x), self.steps, self.features)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"steps={self.steps}, features={self.features}"


def sequence_of(dataset: Dataset, model: str) -> Sequence:
    """How `model` reads the samples of a data set as sequences.

    `[time, feature]` is a sequence already. Of an image `[1, height, width]` each row is a time step,
    and of a signal `[1, length]` each value.

    Args:
        dataset: whose samples to read.
        model: the model's name, for the error.

    Raises:
        ValueError: if the samples have another shape.

    Example:
        >>> from bouton.lab.data import mnist1d
        >>> sequence_of(mnist1d(), "rnn")
        Sequence(steps=40, features=1)
    """
    shape = tuple(dataset.x_train.shape[1:])
    match shape:
        case (1, steps, features) | (steps, features) if steps > 1:
            return Sequence(steps, features)
        case (1, steps):
            return Sequence(steps, 1)
    raise ValueError(
        f"the model {model} needs samples [time, feature], images [1, height, width], whose rows are its "
        "time steps, or signals [1, length], such as those of sequential-fashion-mnist, fashion-mnist and "
        f"mnist1d; {dataset.name} has {shape}. Type --model mlp, which takes any shape, or give a model of "
        "your own"
    )
