"""A comparison: arms times seeds, and the file that says what the sweep in a folder compares."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bouton.lab import from_json
from bouton.lab.arms import Arm
from bouton.lab.folder import locked, write_atomically
from bouton.lab.records import RunConfig, RunResult
from bouton.lab.runs import RunStore
from bouton.lab.setup import check_settings
from bouton.lab.sources import Source

FILE = "comparison.json"
MOST_SEEDS = 100_000  # a report looks for the run of each


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
        for name in ("seeds", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, found {getattr(self, name)}")
        if self.seeds > MOST_SEEDS:
            raise ValueError(f"seeds must be {MOST_SEEDS} or fewer, found {self.seeds}")
        check_settings(self.batch_size, self.optimizer, self.lr)
        if not self.arms or len({arm.name for arm in self.arms}) < len(self.arms):
            raise ValueError("arms must be there, each with a name of its own")

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


def keep_comparison(directory: Path, comparison: Comparison) -> None:
    """Writes what is compared into the sweep's folder.

    A folder holds one comparison. It may grow, by seeds and arms, and the code that it asks may be edited;
    anything else would put another comparison in its place.

    Raises:
        ValueError: if the folder holds another comparison, or a file that cannot be read.
        FolderError: if the folder cannot be written.
    """
    with locked(directory, "comparison", wait=True):
        if (directory / FILE).exists():
            differences = _differences(read_comparison(directory), comparison)
            if differences:
                raise ValueError(
                    f"{directory} holds another comparison: {'; '.join(differences)}. Give another folder "
                    f"with --out; or delete {directory / FILE} to begin this comparison there (runs that "
                    "are there are kept, and used where they fit)"
                )
        write_atomically(directory / FILE, json.dumps(asdict(comparison), indent=2))


def read_comparison(directory: Path) -> Comparison:
    """Reads what the sweep in a folder compares.

    Raises:
        ValueError: if there is no sweep in the folder, or its file is damaged.
    """
    path = directory / FILE
    try:
        comparison: Comparison = from_json.build(Comparison, from_json.read(path))
    except FileNotFoundError as error:
        raise ValueError(
            f"{directory} holds no comparison ({path} is not there): give the folder that `bouton demo` or "
            "`bouton compare` wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): delete it and type the command that started the sweep; the "
            "finished runs in the folder are kept"
        ) from error
    return comparison


def _differences(there: Comparison, here: Comparison) -> list[str]:
    """What keeps a comparison from being the one in the folder, or that one grown."""
    asked = {
        name: (_place(getattr(there, name)), _place(getattr(here, name))) for name in ("data", "model")
    }
    for name in ("samples", "epochs", "batch_size", "optimizer", "lr"):
        asked[name] = getattr(there, name), getattr(here, name)
    found = [f"{name} is {old} there and {new} here" for name, (old, new) in asked.items() if old != new]
    if there.seeds > here.seeds:
        found.append(f"seeds is {there.seeds} there and {here.seeds} here")
    kept = [_what(arm) for arm in here.arms]
    return found + [
        f"the arm {arm.name} is there and not here" for arm in there.arms if _what(arm) not in kept
    ]


def _place(source: Source) -> str:
    return f"{source.path}:{source.function}" if source.path is not None else source.name


def _what(arm: Arm) -> Arm:
    """An arm but for whether it may be left out: that decides whether it is made, not what it is."""
    return replace(arm, optional=False)
