"""One run: a plain training loop, the same for every arm.

Runs of one seed are paired: they start from the same weights and see the same batches. The test
split is only looked at: nothing is chosen by it, and the number a run reports is the accuracy
after its last epoch.
"""

from __future__ import annotations

import hashlib
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

import bouton
from bouton.lab.data import Dataset
from bouton.lab.records import Epoch, RunConfig, RunResult
from bouton.lab.sources import build_model, load_data
from bouton.mechanism import Mechanism

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}
TEST_BATCH = 1000


def train(config: RunConfig, on_epoch: Callable[[Epoch], None] | None = None) -> RunResult:
    """Makes one run.

    The global random numbers of torch are seeded for the run and given back as found.

    Args:
        config: what to do.
        on_epoch: called with each epoch's measurements.

    Returns:
        The result, finished or diverged.

    Raises:
        ValueError: if data, model and mechanisms do not fit together.
    """
    dataset = load_data(config.data)
    with torch.random.fork_rng(devices=[]):
        model = fresh_model(config, dataset)
        lr = config.lr * mean_factor(model, config)
        optimizer = OPTIMIZERS[config.optimizer](model.parameters(), lr=lr)
        handle = None
        if config.mechanisms:
            handle = bouton.attach(model, optimizer, _revive(config.mechanisms), seed=config.seed)
        # Once more, so that what the steps draw (dropout) does not hang on what came before.
        torch.manual_seed(config.seed)
        epochs: list[Epoch] = []
        error = None
        for indices in _orders(config, len(dataset.x_train)):
            epoch = _one_epoch(model, optimizer, dataset, indices, len(epochs) + 1)
            if not (math.isfinite(epoch.train_loss) and math.isfinite(epoch.test_loss)):
                error = f"the loss was not finite in epoch {epoch.epoch}"
                break
            epochs.append(epoch)
            if on_epoch is not None:
                on_epoch(epoch)
    return RunResult(
        status="finished" if error is None else "diverged",
        epochs=tuple(epochs),
        lr=lr,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        stats=_finite(handle.stats()) if handle is not None else {},
        error=error,
        environment=environment(),
    )


def fresh_model(config: RunConfig, dataset: Dataset) -> nn.Module:
    """Builds the run's model from its seed; seeds torch's global random numbers.

    Raises:
        ValueError: if the model does not give one number per class.
    """
    torch.manual_seed(config.seed)
    model = build_model(config.model, dataset)
    model.eval()
    try:
        with torch.no_grad():  # also gives lazy layers their shape
            output = model(dataset.x_train[:2])
    except Exception as error:
        raise ValueError(
            f"the model {config.model.name} cannot take two samples of {config.data.name}, a tensor of "
            f"shape {tuple(dataset.x_train[:2].shape)}: {type(error).__name__}: {error}"
        ) from error
    expected = (len(dataset.x_train[:2]), dataset.classes)
    if not isinstance(output, Tensor) or output.shape != expected:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"the model {config.model.name} must give a tensor [sample, class] of shape "
            f"{expected} for two samples of {config.data.name}; it gave {found}"
        )
    return model.train()


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


def environment() -> dict[str, Any]:
    """The versions and the thread count that the numbers were made with."""
    return {
        "bouton": bouton.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def _orders(config: RunConfig, samples: int) -> Iterable[Iterable[Tensor]]:
    """For each epoch the samples' indices of each batch: of the seed alone."""
    # Not the bare seed: the initial weights are made of that one's random numbers.
    digest = hashlib.sha256(f"batches {config.seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    for _ in range(config.epochs):
        yield torch.randperm(samples, generator=generator).split(config.batch_size)


def _one_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    dataset: Dataset,
    batches: Iterable[Tensor],
    number: int,
) -> Epoch:
    total = torch.zeros(())  # stays a tensor: the loss is looked at once, at the epoch's end
    seconds = []
    for indices in batches:
        x, y = dataset.x_train[indices], dataset.y_train[indices]
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        total += loss.detach() * len(indices)
    test_loss, test_accuracy = _test(model, dataset)
    return Epoch(
        epoch=number,
        step=number * len(seconds),
        train_loss=total.item() / len(dataset.x_train),
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        step_seconds=statistics.median(seconds),
    )


@torch.no_grad()
def _test(model: nn.Module, dataset: Dataset) -> tuple[float, float]:
    """Mean loss and accuracy over the test split."""
    model.eval()
    loss, right = torch.zeros(()), torch.zeros(())
    splits = zip(dataset.x_test.split(TEST_BATCH), dataset.y_test.split(TEST_BATCH), strict=True)
    for x, y in splits:
        output = model(x)
        loss += cross_entropy(output, y, reduction="sum")
        right += (output.argmax(1) == y).sum()
    model.train()
    return loss.item() / len(dataset.y_test), right.item() / len(dataset.y_test)


def _revive(mechanisms: Iterable[dict[str, Any]]) -> list[Mechanism]:
    return [Mechanism.from_dict(values) for values in mechanisms]


def _finite(value: Any) -> Any:
    """Numbers that JSON cannot hold become None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value if not isinstance(value, float) or math.isfinite(value) else None
