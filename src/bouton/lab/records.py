"""What a run is asked to do and what it found: frozen, and JSON both ways."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from bouton.lab.sources import Source

Status = Literal["finished", "diverged", "failed"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's numbers, and nothing else.

    Args:
        data: the data set.
        model: the network.
        mechanisms: the mechanisms' dictionaries (`Mechanism.to_dict()`); empty: plain training.
        match_lr_to: mechanisms whose mean factor on the fresh model multiplies `lr`; they are
            not attached. Empty: `lr` as it is.
        samples: training samples, the first of `Dataset.first`'s order; None: all.
        seed: of the initial weights, the order of the batches and the mechanisms.
        epochs: how often the training split is seen.
        batch_size: samples per step.
        optimizer: a key of `bouton.lab.training.OPTIMIZERS`.
        lr: the learning rate, before matching.
        version: bouton's version.
    """

    data: Source
    model: Source
    mechanisms: tuple[dict[str, Any], ...] = ()
    match_lr_to: tuple[dict[str, Any], ...] = ()
    samples: int | None = None
    seed: int
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    version: str

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON-able values.

        `samples` is left out where all are taken, so that runs from before it existed keep their names.
        """
        values = asdict(self)
        if self.samples is None:
            del values["samples"]
        return values

    @property
    def key(self) -> str:
        """The hash that names the run's folder."""
        text = json.dumps(self.to_dict(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The measurements at one epoch's end.

    Args:
        epoch: counted from 1.
        step: optimizer steps done so far.
        train_loss: mean over the epoch's samples, as met while training.
        test_loss: mean over the test split.
        test_accuracy: share of the test split classified correctly.
        step_seconds: median time of the epoch's steps, without any test.

    Raises:
        ValueError: if a value is out of range.
    """

    epoch: int
    step: int
    train_loss: float
    test_loss: float
    test_accuracy: float
    step_seconds: float

    def __post_init__(self) -> None:
        for name in ("epoch", "step", "step_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, found {getattr(self, name)}")
        if not 0 <= self.test_accuracy <= 1:
            raise ValueError(f"test_accuracy must be from 0 to 1, found {self.test_accuracy}")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What came out of a run.

    Args:
        status: "finished"; "diverged", when a loss stopped being finite; "failed", by an error.
        epochs: the epochs before that.
        lr: the learning rate used (after matching), or None if the run failed before.
        parameters: how many numbers the model trains.
        stats: the mechanisms' own numbers at the end (`Attachment.stats()`), None for those not finite.
        error: for a diverged run when it happened; for a failed one the traceback.
        environment: versions and thread count.
    """

    status: Status
    epochs: tuple[Epoch, ...] = ()
    lr: float | None = None
    parameters: int = 0
    stats: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    error: str | None = None
    environment: dict[str, str | int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All but the epochs, which have a file of their own, as JSON-able values."""
        shallow = {f.name: getattr(self, f.name) for f in fields(self)}
        del shallow["epochs"]
        return shallow
