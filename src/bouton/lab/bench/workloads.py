"""What is timed: a model, its optimizer, and batches of random numbers in the shape of its data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

import bouton
from bouton.lab.bench.nets import Decoder, ResNet18, perceptron
from bouton.lab.data import DATASETS
from bouton.lab.models import MODELS
from bouton.lab.records import RunConfig
from bouton.lab.setup import OPTIMIZERS, check_settings, fresh_model
from bouton.lab.sources import load_data, parse_source

SEED = 0
Batch = tuple[Tensor, Tensor]


class Training:
    """A model in training, one step at a time.

    Args:
        model: in training mode.
        optimizer: of its parameters.
        batch: inputs, and the labels of each sample or position.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, batch: Batch) -> None:
        self.model, self.optimizer = model, optimizer
        self._x, self._y = batch
        self.between: Callable[[], None] | None = None  # called between backward and the optimizer's step

    def step(self) -> None:
        """Forward, backward, the optimizer's step; waits for nothing."""
        self.optimizer.zero_grad()
        output = self.model(self._x).float()
        cross_entropy(output.flatten(0, -2), self._y.flatten()).backward()
        if self.between is not None:
            self.between()
        self.optimizer.step()

    def steps(self, count: int) -> None:
        """So many steps."""
        for _ in range(count):
            self.step()


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A training step to time.

    Args:
        name: what tables call it.
        summary: the model in a few words.
        build: makes the model; torch's global random numbers are seeded then.
        draw: makes a batch of so many samples.
        batch_size: samples per step.
        optimizer: a key of `bouton.lab.setup.OPTIMIZERS`.
        lr: the learning rate.

    Raises:
        ValueError: if the optimizer is unknown, or a number out of range.
    """

    name: str
    summary: str
    build: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator], Batch]
    batch_size: int
    optimizer: str
    lr: float

    def __post_init__(self) -> None:
        check_settings(self.batch_size, self.optimizer, self.lr)

    def start(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Training:
        """A fresh training: each call gives the same weights and the same batch.

        Args:
            device: where.
            dtype: of weights and inputs.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = self.build().to(device, dtype)
        x, y = self.draw(self.batch_size, torch.Generator().manual_seed(SEED))
        x = x.to(device, dtype if x.is_floating_point() else None)
        optimizer = OPTIMIZERS[self.optimizer](model.parameters(), lr=self.lr)
        return Training(model.train(), optimizer, (x, y.to(device)))

    def describe(self) -> str:
        """Model, batch and optimizer in a line."""
        return f"{self.summary}, batch {self.batch_size}, {self.optimizer}, learning rate {self.lr:g}"


def labelled(shape: tuple[int, ...], classes: int, size: int, generator: torch.Generator) -> Batch:
    """Normally distributed samples of a shape, with labels drawn at random."""
    x = torch.randn(size, *shape, generator=generator)
    return x, torch.randint(classes, (size,), generator=generator)


def text(sequence: int, vocabulary: int, size: int, generator: torch.Generator) -> Batch:
    """Random tokens; the label of each position is the next token."""
    tokens = torch.randint(vocabulary, (size, sequence + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            name="mlp",
            summary="MLP 784-256-256-10",
            build=partial(perceptron, 784, 256, 256, 10),
            draw=partial(labelled, (784,), 10),
            batch_size=64,
            optimizer="momentum",
            lr=0.01,
        ),
        Workload(
            name="resnet18",
            summary="ResNet-18 for 32x32 images",
            build=partial(ResNet18, 10),
            draw=partial(labelled, (3, 32, 32), 10),
            batch_size=16,
            optimizer="adamw",
            lr=0.001,
        ),
        Workload(
            name="transformer",
            summary="decoder-only transformer of 4 layers, width 256, 8 heads, sequence 128",
            build=partial(Decoder, layers=4, width=256, heads=8, sequence=128, vocabulary=256),
            draw=partial(text, 128, 256),
            batch_size=8,
            optimizer="adamw",
            lr=0.001,
        ),
        Workload(
            name="gpt2",
            summary="decoder-only transformer of 12 layers, width 768, 12 heads, sequence 1024 (GPT-2)",
            build=partial(
                Decoder, layers=12, width=768, heads=12, sequence=1024, vocabulary=50257, tied=True
            ),
            draw=partial(text, 1024, 50257),
            batch_size=8,
            optimizer="adamw",
            lr=0.001,
        ),
    )
}


def named(name: str, **changes: str | float | int | None) -> Workload:
    """A built-in workload, with other settings where they are not None.

    Raises:
        ValueError: if there is none of that name.

    Example:
        >>> named("mlp", batch_size=32, lr=None).describe()
        'MLP 784-256-256-10, batch 32, momentum, learning rate 0.01'
    """
    if name not in WORKLOADS:
        raise ValueError(
            f"unknown workload {name!r}: expected {', '.join(WORKLOADS)}; for a model of your own type "
            "--model file.py:make_model --data file.py:make_data"
        )
    given = {key: value for key, value in changes.items() if value is not None}
    return replace(WORKLOADS[name], **given)  # type: ignore[arg-type]


def users(model: str, data: str, *, batch_size: int, optimizer: str, lr: float) -> Workload:
    """The workload of a model and data as `bouton compare` takes them; its batch is the data's first.

    Args:
        model: `file.py:make_model` or a built-in name.
        data: `file.py:make_data` or a built-in name.
        batch_size: samples per step.
        optimizer: a key of `bouton.lab.setup.OPTIMIZERS`.
        lr: the learning rate.

    Raises:
        ValueError: if data or model cannot be had, or do not fit together.
    """
    config = RunConfig(
        data=parse_source(data, DATASETS, what="data"),
        model=parse_source(model, MODELS, what="model"),
        seed=SEED,
        epochs=1,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lr,
        version=bouton.__version__,
    )
    dataset = load_data(config.data, None)

    def first(size: int, generator: torch.Generator) -> Batch:
        return dataset.x_train[:size], dataset.y_train[:size]

    return Workload(
        name=f"{config.model.name} on {config.data.name}",
        summary=f"{config.model.name} on {config.data.name}",
        build=partial(fresh_model, config, dataset),
        draw=first,
        batch_size=min(batch_size, len(dataset.y_train)),
        optimizer=optimizer,
        lr=lr,
    )
