"""Time the loops in C in bare hooks, where nothing is checked: what mechanisms take at the least.

    python benchmarks/floor.py
    python benchmarks/write_tables.py    # puts the table into docs/speed.md

For five mechanisms on the MLP, in some two minutes. Addresses are looked up once, no settings are read,
and nothing could be saved or undone: no library could work like this. What is left are torch's hooks, the
loops, and the calls of them. The result goes to benchmarks/results/floor-cpu.json.
"""

from __future__ import annotations

import argparse
import ctypes
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from bouton.lab.bench import ARMS, Effort, Setting, measure, named, write_records
from bouton.lab.bench.measurement import Equip
from bouton.lab.bench.table import make_table
from bouton.lab.bench.terminal import LiveProgress, print_table
from bouton.lab.bench.workloads import Training
from bouton.native.library import Rates, Sgd, library

OUT = Path(__file__).parent / "results" / "floor-cpu.json"
THREADS = 2
NU, SGD = 0.16, Sgd(0.01, 0.9, 1.0, 0.0, 0, 1.0)  # that of the workload
Prepare = Callable[[ctypes.CDLL, Tensor], tuple[Rates, Callable[[int], None]]]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=8, help="the most for each measurement")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    loops, console = library(), Console(highlight=False)
    if loops is None:
        parser.exit(1, "there are no loops in C here: a compiler is needed, and no BOUTON_NATIVE=0\n")
    floors = {name: make(loops) for name, make in FLOORS.items()}
    command = shlex.join(["python", "benchmarks/floor.py", *sys.argv[1:]])
    effort = Effort(seconds=asked.seconds, precision=0.005)
    setting = Setting(threads=THREADS, effort=effort, memory=False, command=command)
    arms = [ARMS[0], *(arm for arm in ARMS if arm.name in floors)]
    with LiveProgress(console, len(arms) + len(floors)) as progress:
        record = measure(
            named("mlp"), arms, setting, other=floors, other_name="bare hooks and loops", progress=progress
        )
    print_table(console, make_table(record))
    write_records(asked.out, [record])


def modulated(loops: ctypes.CDLL) -> Equip:
    """Each hidden layer's error times the shares of its nodes."""

    def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        weight = layer._parameters["weight"]
        assert weight is not None
        factors = torch.empty(len(weight))
        loops.row_sizes(weight.data_ptr(), *weight.shape, 0, factors.data_ptr(), THREADS)
        loops.shares(factors.data_ptr(), len(weight), 1.0, 2.0, 0)
        output.register_hook(lambda error: error * factors)

    def equip(training: Training) -> int:
        layers = _layers(training)[:-1]
        for layer in layers:
            layer.register_forward_hook(hook)
        return sum(layer.weight.numel() for layer in layers)

    return equip


def stepped(prepare: Prepare, of: slice = slice(None)) -> Callable[[ctypes.CDLL], Equip]:
    """Each weight's step and its rates in one loop, while torch's optimizer finds no gradient of it."""

    def make(loops: ctypes.CDLL) -> Equip:
        def equip(training: Training) -> int:
            layers = _layers(training)[of]
            weights = [layer.weight for layer in layers]
            moved = [torch.zeros_like(weight) for weight in weights]
            prepared = [prepare(loops, weight.detach()) for weight in weights]
            held: list[Tensor | None] = []

            def withhold(*_: object) -> None:
                held[:] = [weight.grad for weight in weights]
                for weight in weights:
                    weight.grad = None

            def step(*_: object) -> None:
                for weight, gradient, buffer, (rates, renew) in zip(
                    weights, held, moved, prepared, strict=True
                ):
                    assert gradient is not None
                    weight.grad, place = gradient, gradient.data_ptr()
                    renew(place)
                    loops.sgd(weight.data_ptr(), place, buffer.data_ptr(), SGD, rates, THREADS)

            training.optimizer.register_step_pre_hook(withhold)
            training.optimizer.register_step_post_hook(step)
            return sum(weight.numel() for weight in weights)

        return equip

    return make


def observed(loops: ctypes.CDLL) -> Equip:
    """Rates times the factors of nodes, of which each layer's hook counts how often they are active."""
    counts: dict[int, Tensor] = {}  # by a weight's address

    def renewed(loops: ctypes.CDLL, weight: Tensor) -> tuple[Rates, Callable[[int], None]]:
        recent, active = counts[weight.data_ptr()]
        factors = torch.ones(len(weight))
        rates = _static(weight)
        rates.nodes, rates.rows, rates.columns = factors.data_ptr(), *weight.shape

        def renew(gradient: int, kept: Tensor = factors) -> None:
            loops.activity(active.data_ptr(), recent.data_ptr(), kept.data_ptr(), len(kept))
            recent.zero_()

        return rates, renew

    def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        weight = layer._parameters["weight"]
        assert weight is not None
        batch, nodes = output.shape
        recent = counts[weight.data_ptr()][0]
        loops.count_beyond(output.data_ptr(), batch, nodes, 1, 0.01, recent.data_ptr(), THREADS)

    def equip(training: Training) -> int:
        for layer in _layers(training):
            counts[layer.weight.data_ptr()] = torch.zeros(2, len(layer.weight), dtype=torch.float64)
            layer.register_forward_hook(hook)
        return stepped(renewed)(loops)(training)

    return equip


def static(loops: ctypes.CDLL, weight: Tensor) -> tuple[Rates, Callable[[int], None]]:
    """Rates that stay."""
    return _static(weight), lambda gradient: None


def crystallized(loops: ctypes.CDLL, weight: Tensor) -> tuple[Rates, Callable[[int], None]]:
    """Rates that stay, times rates that fall."""
    rates, own = _static(weight), torch.ones_like(weight)
    rates.others = own.data_ptr()
    place, count, where = own.data_ptr(), own.numel(), weight.data_ptr()

    def renew(gradient: int, kept: Tensor = own) -> None:
        loops.crystallize(place, where, gradient, 4.5e-5, None, -0.4, 0.0, count, THREADS)

    return rates, renew


def shared(loops: ctypes.CDLL, weight: Tensor) -> tuple[Rates, Callable[[int], None]]:
    """The shares of nodes."""
    factors = torch.empty(len(weight))
    place, where, rows, columns = factors.data_ptr(), weight.data_ptr(), *weight.shape

    def renew(gradient: int, kept: Tensor = factors) -> None:
        loops.row_sizes(where, rows, columns, 0, place, THREADS)
        loops.shares(place, rows, 1.0, 2.0, 0)

    return Rates(where, 0, 1.0, -1.0, place, None, rows, columns), renew


_KEPT: list[Tensor] = []  # of which the loops know no more than the address


def _static(weight: Tensor) -> Rates:
    values = torch.rand_like(weight).half()
    _KEPT.append(values)
    return Rates(values.data_ptr(), 2, NU, 0.0, None, None, 1, weight.numel())


def _layers(training: Training) -> list[nn.Linear]:
    return [layer for layer in training.model.modules() if isinstance(layer, nn.Linear)]


FLOORS: dict[str, Callable[[ctypes.CDLL], Equip]] = {
    "Grapes, propagated": modulated,
    "Grapes, local": stepped(shared, slice(-1)),
    "PlasticityDiversity, static": stepped(static),
    "PlasticityDiversity, activity-dependent": observed,
    "Crystallization with diversity": stepped(crystallized),
}

if __name__ == "__main__":
    main()
