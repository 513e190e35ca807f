"""The data sets of the lab: small, labelled, and the same for everyone who loads them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bouton.lab.fashion_mnist import read_fashion_mnist


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled data set with its fixed split.

    Args:
        name: what tables call it.
        x_train: inputs `[sample, ...]`, floating point and finite; the built-in sets are
            `[sample, channel, position...]`, scaled to mean 0 and standard deviation 1.
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
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            x, y = getattr(self, f"x_{split}"), getattr(self, f"y_{split}")
            if not x.is_floating_point() or x.dim() < 2 or not len(x):
                raise ValueError(
                    f"{self.name}: x_{split} must be floating point, [sample, feature...] and not "
                    f"empty; found {x.dtype} of shape {tuple(x.shape)}"
                )
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
            if not x.isfinite().all():
                raise ValueError(f"{self.name}: x_{split} holds values that are not finite")
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
        classes = int(labels[0].max()) + 1 if labels[0].numel() else 1  # what is to be learned
        return cls(name, inputs[0], labels[0], inputs[1], labels[1], classes)


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


DATASETS: dict[str, Callable[[], Dataset]] = {
    "mnist1d": mnist1d,
    "digits": digits,
    "fashion-mnist": fashion_mnist,
}


def _standardised(name: str, x_train: Any, y_train: Any, x_test: Any, y_test: Any) -> Dataset:
    """Scales the inputs by the mean and standard deviation over all of the training split."""
    raw = Dataset.of(name, x_train, y_train, x_test, y_test)
    mean, std = raw.x_train.mean(), raw.x_train.std()
    return Dataset(
        name,
        (raw.x_train - mean) / std,
        raw.y_train,
        (raw.x_test - mean) / std,
        raw.y_test,
        raw.classes,
    )


def _tensor(what: str, value: Any) -> Tensor:
    try:
        return value.detach().cpu() if isinstance(value, Tensor) else torch.tensor(np.array(value))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what} must be an array or tensor of numbers, found {type(value).__name__}"
        ) from error
