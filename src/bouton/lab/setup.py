"""What a run starts from: a fresh model, its optimizer, and the mechanisms attached to both."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import bouton
from bouton.lab.dataset import Dataset
from bouton.lab.records import RunConfig
from bouton.lab.sources import build_model
from bouton.mechanism import Mechanism

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


def check_settings(batch_size: int, optimizer: str, lr: float) -> None:
    """Refuses what no training can be made with.

    Raises:
        ValueError: if the optimizer is unknown, or a number out of range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, found {batch_size}")
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr must be a positive number, found {lr}")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {optimizer!r}: expected {', '.join(OPTIMIZERS)}")


def fresh_model(config: RunConfig, dataset: Dataset) -> nn.Module:
    """Builds the run's model from its seed; seeds torch's global random numbers.

    Raises:
        ValueError: if the model does not give one number per class.
    """
    torch.manual_seed(config.seed)
    model = build_model(config.model, dataset)
    model.eval()
    samples = dataset.x_train[:2]
    try:
        with torch.no_grad():  # also gives lazy layers their shape
            output = model(samples)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"the model {config.model.name} cannot take two samples of {config.data.name}, a tensor of "
            f"shape {tuple(samples.shape)}: {type(error).__name__}: {error}"
        ) from error
    expected = (len(samples), dataset.classes)
    if not isinstance(output, Tensor) or output.shape != expected:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"the model {config.model.name} must give a tensor [sample, class] of shape "
            f"{expected} for two samples of {config.data.name}; it gave {found}"
        )
    return model.train()


def equip(model: nn.Module, config: RunConfig) -> tuple[Optimizer, bouton.Attachment | None]:
    """Makes the run's optimizer and attaches the run's mechanisms, if it has any.

    Args:
        model: a fresh one.
        config: what to do.

    Raises:
        ValueError: the mechanisms, or those to match, cannot act on this model.
    """
    lr = config.lr * mean_factor(model, config)
    optimizer = OPTIMIZERS[config.optimizer](model.parameters(), lr=lr)
    if not config.mechanisms:
        return optimizer, None
    return optimizer, bouton.attach(model, optimizer, _revive(config.mechanisms), seed=config.seed)


def mean_factor(model: nn.Module, config: RunConfig) -> float:
    """The mean over layers and nodes of the factors that `match_lr_to` has on a fresh model.

    1 where there is nothing to match.

    Raises:
        ValueError: these mechanisms find nothing to act on in this model.
    """
    if not config.match_lr_to:
        return 1.0
    optimizer = OPTIMIZERS[config.optimizer](model.parameters(), lr=config.lr)
    handle = bouton.attach(model, optimizer, _revive(config.match_lr_to), seed=config.seed)
    layers = [layer for mechanism in handle.stats().values() for layer in mechanism.values()]
    handle.detach()  # exactly: no step was made
    return statistics.fmean(layer["mean"] for layer in layers)


def _revive(mechanisms: Iterable[dict[str, object]]) -> list[Mechanism]:
    return [Mechanism.from_dict(values) for values in mechanisms]
