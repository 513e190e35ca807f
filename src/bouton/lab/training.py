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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

import bouton
from bouton.lab.dataset import Dataset
from bouton.lab.records import Epoch, RunConfig, RunResult
from bouton.lab.setup import equip, fresh_model
from bouton.lab.sources import load_data
from bouton.native.library import loops_used

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
    dataset = load_data(config.data, config.samples)
    with torch.random.fork_rng(devices=[]):
        model = fresh_model(config, dataset)
        optimizer, handle = equip(model, config)
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
        lr=optimizer.defaults["lr"],
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        stats=_finite(handle.stats()) if handle is not None else {},
        error=error,
        environment=environment(),
    )


def environment() -> dict[str, Any]:
    """The versions, the thread count and the kind of loops that the numbers were made with."""
    return {
        "bouton": bouton.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "loops": loops_used(),
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
    for start in range(0, len(dataset.y_test), TEST_BATCH):
        batch = slice(start, start + TEST_BATCH)
        output, y = model(dataset.x_test[batch]), dataset.y_test[batch]
        loss += cross_entropy(output, y, reduction="sum")
        right += (output.argmax(1) == y).sum()
    model.train()
    return loss.item() / len(dataset.y_test), right.item() / len(dataset.y_test)


def _finite(value: Any) -> Any:
    """Numbers that JSON cannot hold become None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value if not isinstance(value, float) or math.isfinite(value) else None
