"""Time what torch's operations alone take, of which some mechanisms consist; some three minutes.

    python benchmarks/floor.py
    python benchmarks/write_tables.py    # puts the table into docs/speed.md

For four mechanisms on the MLP, the fewest operations of torch by which we know to do the same work are
timed in the same way: on memory that is there already, one right after another, with nothing around them.
The result goes to benchmarks/results/floor-cpu.json.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from bouton.lab.bench import ARMS, Effort, Setting, measure, named, write_records
from bouton.lab.bench.measurement import Equip
from bouton.lab.bench.table import make_table
from bouton.lab.bench.terminal import LiveProgress, print_table
from bouton.lab.bench.workloads import Training

OUT = Path(__file__).parent / "results" / "floor-cpu.json"
Operations = Callable[[Tensor, Tensor, Tensor], None]  # on a weight, its gradient and its momentum
SIZE = 1e-9  # of updates: they cost what others cost, and the training stays what it is


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=8, help="the most for each measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    console = Console(highlight=False)
    command = shlex.join(["python", "benchmarks/floor.py", *sys.argv[1:]])
    effort = Effort(seconds=asked.seconds, precision=0.005)
    setting = Setting(threads=asked.threads, effort=effort, memory=False, command=command)
    arms = [ARMS[0], *(arm for arm in ARMS if arm.name in FLOORS)]
    with LiveProgress(console, len(arms) + len(FLOORS)) as progress:
        record = measure(
            named("mlp"), arms, setting, other=FLOORS, other_name="operations alone", progress=progress
        )
    print_table(console, make_table(record))
    write_records(asked.out, [record])


def after_each_step(make: Callable[[Tensor], Operations], readout: bool = True) -> Equip:
    """Run operations on every weight once the optimizer has stepped it."""

    def equip(training: Training) -> int:
        weights = [p for p in training.model.parameters() if p.ndim > 1][: None if readout else -1]
        operations = [(weight, make(weight.detach())) for weight in weights]

        @torch.no_grad()
        def run(optimizer: torch.optim.Optimizer, *_: object) -> None:
            for weight, operate in operations:
                assert weight.grad is not None
                operate(weight.detach(), weight.grad, optimizer.state[weight]["momentum_buffer"])

        training.optimizer.register_step_post_hook(run)
        return sum(weight.numel() for weight in weights)

    return equip


def shares(weight: Tensor) -> Operations:
    """The share of each node: a sum over its synapses, and that over the largest."""
    size = torch.empty_like(weight)

    def operate(weight: Tensor, gradient: Tensor, momentum: Tensor) -> None:
        total = torch.abs(weight, out=size).sum(1)
        total.div_(total.amax()).mul_(2).clamp_(1, 2)

    return operate


def static(weight: Tensor) -> Operations:
    """Add rates of two bytes times the update."""
    rates = torch.rand_like(weight).half()

    def operate(weight: Tensor, gradient: Tensor, momentum: Tensor) -> None:
        weight.addcmul_(momentum, rates, value=SIZE)

    return operate


def volume(weight: Tensor) -> Operations:
    """Rates of mean 1 that fall with a weight's size, times noise that is there already."""
    rate, noise = torch.empty_like(weight), torch.rand_like(weight)

    def operate(weight: Tensor, gradient: Tensor, momentum: Tensor) -> None:
        torch.abs(weight, out=rate).add_(1).reciprocal_().mul_(2 / math.log(2)).exp2_()
        mean = rate.mean()
        rate.mul_(noise).div_(mean).sub_(1)
        weight.addcmul_(momentum, rate, value=SIZE)

    return operate


def crystallization(weight: Tensor) -> Operations:
    """Lower some rates, and add them and rates of two bytes times the update."""
    own, rates = torch.ones_like(weight), torch.rand_like(weight).half()
    size, pull = torch.empty_like(weight), torch.empty_like(weight)

    def operate(weight: Tensor, gradient: Tensor, momentum: Tensor) -> None:
        mean = torch.abs(weight, out=size).mean()
        weak = size.mul_(4.5e-5).gt_(torch.abs(gradient, out=pull))
        own.addcmul_(own, torch.maximum(weak, pull.gt_(mean), out=weak), value=-0.4)
        torch.addcmul(own, own, rates, value=0.16, out=size).sub_(1)
        weight.addcmul_(momentum, size, value=SIZE)

    return operate


FLOORS: dict[str, Equip] = {
    "Grapes, local": after_each_step(shares, readout=False),
    "PlasticityDiversity, static": after_each_step(static),
    "VolumePlasticity": after_each_step(volume),
    "Crystallization with diversity": after_each_step(crystallization),
}

if __name__ == "__main__":
    main()
