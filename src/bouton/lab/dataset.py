"""A labelled data set: what the lab's models are built for and trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bouton.lab.spikes import SpikeTrains

ORDER_SEED = 0  # of the order in which `Dataset.first` takes samples


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled data set with its fixed split.

    Args:
        name: what tables call it.
        x_train: inputs `[sample, ...]`, floating point and finite, or spike trains. The built-in sets
            are `[sample, channel, position...]`, or `[sample, time, feature]` where they are sequences;
            all but spikes are scaled to mean 0 and standard deviation 1.
        y_train: labels `[sample]`, integers from 0 to `classes - 1`.
        x_test: inputs of the test split, of the same shape per sample.
        y_test: labels of the test split.
        classes: the number of classes.

    Raises:
        ValueError: if the four tensors do not fit together.

    Example:
        >>> Dataset("toy", torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]),
        ...         torch.zeros(2, 2), torch.tensor([0, 1]), classes=2).x_train.shape
        torch.Size([4, 2])
    """

    name: str
    x_train: Tensor | SpikeTrains
    y_train: Tensor
    x_test: Tensor | SpikeTrains
    y_test: Tensor
    classes: int

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            x, y = getattr(self, f"x_{split}"), getattr(self, f"y_{split}")
            if isinstance(x, Tensor):
                _check_inputs(f"{self.name}: x_{split}", x)
            if y.dtype != torch.int64 or y.shape != x.shape[:1]:
                raise ValueError(
                    f"{self.name}: y_{split} must hold one int64 label for each of the {len(x)} "
                    f"samples of x_{split}; found {y.dtype} of shape {tuple(y.shape)}"
                )
            if y.min() < 0 or y.max() >= self.classes:
                raise ValueError(
                    f"{self.name}: y_{split} must hold labels counted from 0, up to {self.classes - 1} as "
                    f"in y_train; found {int(y.min())} to {int(y.max())}"
                )
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise ValueError(
                f"{self.name}: train and test samples differ in shape: "
                f"{tuple(self.x_train.shape[1:])} and {tuple(self.x_test.shape[1:])}"
            )

    @classmethod
    def of(cls, name: str, x_train: Any, y_train: Any, x_test: Any, y_test: Any) -> Dataset:
        """Builds a data set from arrays or tensors: inputs become float32, labels int64.

        Args:
            name: what tables call it.
            x_train: inputs of the training split.
            y_train: whole-number labels of the training split, counted from 0.
            x_test: inputs of the test split.
            y_test: labels of the test split.

        Raises:
            ValueError: if something is no array of numbers, or the four do not fit together.
        """
        labels = []
        for split, y in (("train", y_train), ("test", y_test)):
            raw = _tensor(f"{name}: y_{split}", y)
            if raw.dim() != 1:
                raise ValueError(
                    f"{name}: y_{split} must hold one label per sample, shape [sample]; found {raw.dtype} "
                    f"of shape {tuple(raw.shape)}. One-hot labels become such with .argmax(1), others with "
                    ".flatten()"
                )
            if raw.dtype == torch.bool or (raw.is_floating_point() and (raw != raw.floor()).any()):
                raise ValueError(f"{name}: y_{split} must hold whole numbers, found {raw.dtype}")
            labels.append(raw.long())
        inputs = [
            _tensor(f"{name}: x_{split}", x).float() for split, x in (("train", x_train), ("test", x_test))
        ]
        lowest = min((int(y.min()) for y in labels if y.numel()), default=0)
        if lowest > 0:
            raise ValueError(
                f"{name}: labels must be counted from 0; those of y_train and y_test begin at {lowest}. "
                f"Subtract {lowest} from both; or, if classes below {lowest} are only missing here, return "
                "a bouton.lab.Dataset, which takes classes="
            )
        classes = int(labels[0].max()) + 1 if labels[0].numel() else 1  # what is to be learned
        return cls(name, inputs[0], labels[0], inputs[1], labels[1], classes)

    def first(self, samples: int | None) -> Dataset:
        """The same data set with fewer training samples; the test split stays whole.

        They are the first of an order that is always the same, and in which the classes are mixed: however
        many are taken, each class has its share of them.

        Args:
            samples: how many; None: all, in the order in which they are.

        Raises:
            ValueError: if there are fewer.
        """
        if samples is None:
            return self
        if not 1 <= samples <= len(self.y_train):
            raise ValueError(
                f"{self.name} has {len(self.y_train)} training samples, and asked for are {samples}: type "
                f"--samples with a number from 1 to {len(self.y_train)}, or leave it out to take all"
            )
        taken = _mixed_order(self.y_train)[:samples]
        return replace(self, x_train=self.x_train.index_select(0, taken), y_train=self.y_train[taken])


def _check_inputs(what: str, x: Tensor) -> None:
    if not x.is_floating_point() or x.dim() < 2 or not len(x):
        raise ValueError(
            f"{what} must be floating point, [sample, feature...] and not empty; found {x.dtype} of "
            f"shape {tuple(x.shape)}"
        )
    if not x.isfinite().all():
        raise ValueError(f"{what} holds values that are not finite")


def _mixed_order(labels: Tensor) -> Tensor:
    """All indices in random order, but with the samples of each class spread evenly."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(ORDER_SEED))
    shuffled = labels[order]
    place = torch.empty(len(labels), dtype=torch.float64)  # from 0 to 1
    for label in shuffled.unique():
        own = shuffled == label
        count = int(own.sum())
        place[own] = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return order[place.argsort(stable=True)]


def _tensor(what: str, value: Any) -> Tensor:
    try:
        return value.detach().cpu() if isinstance(value, Tensor) else torch.tensor(np.array(value))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what} must be an array or tensor of numbers, found {type(value).__name__}"
        ) from error
