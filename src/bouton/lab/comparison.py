"""A comparison: arms times seeds, made run by run; what is there already is not made again."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from bouton.lab.arms import Arm
from bouton.lab.records import Epoch, RunConfig, RunResult
from bouton.lab.runs import RunStore, write_atomically
from bouton.lab.setup import OPTIMIZERS, equip, fresh_model
from bouton.lab.sources import Source, load_data
from bouton.lab.training import environment, train

FILE = "comparison.json"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a sweep compares.

    Args:
        data: the data set.
        model: the network.
        arms: the arms, the control "plain" among them.
        samples: training samples, the first of `Dataset.first`'s order; None: all.
        seeds: the number of paired seeds, 0 to `seeds - 1`.
        epochs: how often the training split is seen.
        batch_size: samples per step.
        optimizer: a key of `bouton.lab.training.OPTIMIZERS`.
        lr: the learning rate of every arm but the matched control.
        command: what the user typed, for the report.
        version: bouton's version.
        left_out: name and reason of each optional arm that the model does not allow (`choose_arms`).

    Raises:
        ValueError: if a value is out of range.
    """

    data: Source
    model: Source
    arms: tuple[Arm, ...]
    samples: int | None = None
    seeds: int = 5
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    command: str
    version: str
    left_out: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("seeds", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, found {getattr(self, name)}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be a positive number, found {self.lr}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {self.optimizer!r}: expected {', '.join(OPTIMIZERS)}")

    def config(self, arm: Arm, seed: int) -> RunConfig:
        """The configuration of one run."""
        return RunConfig(
            data=self.data,
            model=self.model,
            mechanisms=arm.mechanisms,
            match_lr_to=arm.match_lr_to,
            samples=self.samples,
            seed=seed,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            lr=self.lr,
            version=self.version,
        )

    def runs(self) -> Iterator[tuple[Arm, int]]:
        """All runs, seed by seed.

        The arms of one seed follow each other, so that a machine that slows down in the course of
        a sweep slows all arms alike.
        """
        return ((arm, seed) for seed in range(self.seeds) for arm in self.arms)

    def results(self, store: RunStore) -> dict[tuple[str, int], RunResult]:
        """The runs that are there, by the arm's name and the seed."""
        loaded = ((arm, seed, store.load(self.config(arm, seed))) for arm, seed in self.runs())
        return {(arm.name, seed): run for arm, seed, run in loaded if run is not None}


class Progress(Protocol):
    """Who wants to know how far a sweep is."""

    def start_run(self, arm: Arm, seed: int, epochs: int) -> None:
        """A run starts."""

    def end_epoch(self, epoch: Epoch) -> None:
        """The run has done an epoch."""

    def end_run(self, arm: Arm, seed: int, result: RunResult, *, made_before: bool) -> None:
        """The run is over, or was over before."""


def choose_arms(comparison: Comparison) -> Comparison:
    """The comparison without the optional arms that the model does not allow, and the reason for each.

    Raises:
        ValueError: if data or model cannot be had at all, or no mechanism is left.
    """
    dataset = load_data(comparison.data, comparison.samples)
    kept, left_out = [], []
    for arm in comparison.arms:
        config = comparison.config(arm, 0)
        with torch.random.fork_rng(devices=[]):
            model = fresh_model(config, dataset)
            try:
                equip(model, config)
            except ValueError as error:
                if arm.optional:
                    left_out.append((arm.name, str(error)))
                    continue
        kept.append(arm)
    if all(arm.control for arm in kept):
        raise ValueError(
            f"no mechanism can act on the model {comparison.model.name}; one reason of {len(left_out)}: "
            f"{left_out[-1][1]}"
        )
    return replace(comparison, arms=tuple(kept), left_out=tuple(left_out))


def run_comparison(comparison: Comparison, directory: Path, progress: Progress) -> None:
    """Makes the runs of a comparison that are not there yet.

    A run that diverges is a result. A run that fails is recorded with its traceback, the sweep
    goes on, and the next start tries it again.

    Args:
        comparison: what to run.
        directory: the sweep's folder.
        progress: told about each run.

    Raises:
        ValueError: if data or model cannot be had at all.
    """
    # A mistake in the data or the model would fail every run: find it before the first.
    with torch.random.fork_rng(devices=[]):
        dataset = load_data(comparison.data, comparison.samples)
        fresh_model(comparison.config(comparison.arms[0], 0), dataset)
    store = RunStore(directory)
    store.clean()
    write_atomically(directory / FILE, json.dumps(asdict(comparison), indent=2))
    for arm, seed in comparison.runs():
        config = comparison.config(arm, seed)
        result = store.load(config)
        made_before = result is not None and result.status != "failed"
        if result is None or not made_before:
            progress.start_run(arm, seed, comparison.epochs)
            try:
                result = train(config, progress.end_epoch)
            except Exception:
                result = RunResult(status="failed", error=traceback.format_exc(), environment=environment())
            store.save(config, result)
        progress.end_run(arm, seed, result, made_before=made_before)


def read_comparison(directory: Path) -> Comparison:
    """Reads what the sweep in a folder compares.

    Raises:
        ValueError: if there is no sweep in the folder.
    """
    path = directory / FILE
    try:
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
        values["data"], values["model"] = Source(**values["data"]), Source(**values["model"])
        values["arms"] = tuple(
            Arm(**{**arm, **{key: tuple(arm[key]) for key in ("mechanisms", "match_lr_to")}})
            for arm in values["arms"]
        )
        values["left_out"] = tuple((name, reason) for name, reason in values.get("left_out", ()))
        return Comparison(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{directory} holds no comparison that can be read ({error}): give the folder that "
            "`bouton demo` or `bouton compare` wrote"
        ) from error
