"""Time one epoch of the lab's loop against a bare torch loop, paired, in one process.

    python benchmarks/epoch_time.py

Fashion-MNIST, batch 64, MLP 784-256-256-10, SGD. The bare loop and each arm take turns; printed is the
median of the paired ratios with its range over the middle half of the repetitions. An arm's time is the
whole of `bouton.lab.training.train`: building the model, attaching, the epoch, and testing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from bouton.lab import define
from bouton.lab.models import mlp
from bouton.lab.sources import load_data
from bouton.lab.training import train

REPETITIONS = 9


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    comparison = define(data="fashion-mnist", model="mlp", epochs=1, lr=0.01)
    dataset = load_data(comparison.data)

    def bare() -> None:
        torch.manual_seed(0)
        model = mlp(dataset)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for batch in torch.randperm(len(dataset.x_train)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(dataset.x_train[batch]), dataset.y_train[batch]).backward()
            optimizer.step()

    arms = {arm.name: comparison.config(arm, seed=0) for arm in comparison.arms}
    ratios: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(REPETITIONS):
        reference = seconds(bare)
        for name, config in arms.items():
            ratios[name].append(seconds(lambda config=config: train(config)) / reference)
    print(
        f"torch {torch.__version__}, 1 thread, {REPETITIONS} repetitions; last bare epoch {reference:.2f} s"
    )
    for name, values in ratios.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name:24} {middle:.2f} [{low:.2f}, {high:.2f}]")


def seconds(call: Callable[[], object]) -> float:
    """How long ``call`` takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
