"""A sweep: a comparison made run by run; what is there already is not made again."""

from __future__ import annotations

import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from bouton.lab.arms import Arm
from bouton.lab.comparison import Comparison, keep_comparison
from bouton.lab.folder import prepare
from bouton.lab.records import Epoch, RunConfig, RunResult
from bouton.lab.runs import RunStore
from bouton.lab.setup import equip, fresh_model
from bouton.lab.sources import load_data
from bouton.lab.training import environment, train

POLL = 0.2  # seconds between two looks at the runs of other processes


class Progress(Protocol):
    """Who wants to know how far a sweep is."""

    def start_run(self, arm: Arm, seed: int, epochs: int) -> None:
        """A run starts."""

    def end_epoch(self, epoch: Epoch) -> None:
        """The run has done an epoch."""

    def end_run(self, arm: Arm, seed: int, result: RunResult, *, made_before: bool) -> None:
        """The run is over, or was over before."""

    def wait(self, runs: int) -> None:
        """All that is left are runs that other processes are making."""


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
    goes on, and the next start tries it again. Processes that run on the same folder share the work: each
    leaves alone what another is making, and makes it itself if that one dies.

    Args:
        comparison: what to run.
        directory: the sweep's folder.
        progress: told about each run.

    Raises:
        ValueError: if data or model cannot be had at all, or the folder holds another comparison or damaged
            files.
        FolderError: if the folder cannot be written.
    """
    directory = directory.absolute()  # the user's code may change the working directory
    # A mistake in the data or the model would fail every run: find it before the first.
    with torch.random.fork_rng(devices=[]):
        dataset = load_data(comparison.data, comparison.samples)
        fresh_model(comparison.config(comparison.arms[0], 0), dataset)
    store = RunStore(directory)
    prepare(directory)
    store.prepare()
    keep_comparison(directory, comparison)
    comparison.results(store)  # a damaged run is found now, not after hours
    sweep = _Sweep(comparison, store, progress)
    left = list(comparison.runs())
    while left := [run for run in left if not sweep.settle(*run)]:
        progress.wait(len(left))
        time.sleep(POLL)


class _Sweep:
    """One process's part in a sweep."""

    def __init__(self, comparison: Comparison, store: RunStore, progress: Progress) -> None:
        self._comparison, self._store, self._progress = comparison, store, progress
        configs = [comparison.config(arm, seed) for arm, seed in comparison.runs()]
        self._editions = {config.key: store.edition(config) for config in configs}

    def settle(self, arm: Arm, seed: int) -> bool:
        """Sees to it that a run is there; False where another process is making it."""
        config = self._comparison.config(arm, seed)
        result = self._result(config)
        made_before = result is not None
        if result is None:
            with self._store.claim(config) as mine:
                if not mine:
                    return False
                result = self._result(config)  # another process may have been faster
                made_before = result is not None
                if result is None:
                    self._progress.start_run(arm, seed, config.epochs)
                    result = _make(config, self._progress)
                    self._store.save(config, result)
        self._progress.end_run(arm, seed, result, made_before=made_before)
        return True

    def _result(self, config: RunConfig) -> RunResult | None:
        """A run that need not be made: one that did not fail, or failed since this process started."""
        result = self._store.load(config)
        if result is not None and result.status == "failed":
            return result if self._store.edition(config) != self._editions[config.key] else None
        return result


def _make(config: RunConfig, progress: Progress) -> RunResult:
    try:
        return train(config, progress.end_epoch)
    except KeyboardInterrupt:
        raise
    except BaseException:  # sys.exit() in the user's code too ends its own run alone
        return RunResult(status="failed", error=traceback.format_exc(), environment=environment())
