"""The table of a comparison as texts: the terminal and the page show the same one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bouton.lab.statistics import FEWEST_FOR_CLAIM, Difference
from bouton.lab.summary import TARGET_SHARE, ArmSummary, Summary

MISSING = "-"


@dataclass(frozen=True)
class Table:
    """Texts only.

    Args:
        title: what was compared.
        headers: one text for each column.
        rows: for each arm one text for each column; the first is its name, the last the verdict.
        left_out: name and reason of what was not compared.
        notes: what the columns mean.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def make_table(summary: Summary) -> Table:
    """Writes a summary as texts."""
    asked = summary.comparison
    target = f"{summary.target:.1%}" if summary.target is not None else "target"
    samples = f" ({_plural(asked.samples, 'training sample')})" if asked.samples is not None else ""
    return Table(
        title=(
            f"{asked.model.name} on {asked.data.name}{samples}: {asked.optimizer}, learning rate "
            f"{asked.lr:g}, batch {asked.batch_size}, {_plural(asked.epochs, 'epoch')}, "
            f"{_plural(asked.seeds, 'paired seed')}"
        ),
        headers=(
            "arm",
            "learning\nrate",
            "accuracy\n%",
            "against\nplain",
            "against\nplain-matched",
            f"steps to\n{target}",
            "step\ntime",
            "verdict",
        ),
        rows=tuple(_row(arm) for arm in summary.arms),
        left_out=asked.left_out,
        notes=_notes(summary, target),
    )


def _row(arm: ArmSummary) -> tuple[str, ...]:
    return (
        arm.name,
        f"{arm.lr:.3g}" if arm.lr is not None else MISSING,
        _accuracy(arm),
        difference_text(arm.vs_plain),
        difference_text(arm.vs_matched),
        _steps(arm.steps),
        f"{arm.step_time:.2f}x" if arm.step_time is not None else MISSING,
        arm.verdict,
    )


def difference_text(difference: Difference | None) -> str:
    """A difference in percentage points, with its interval on a second line."""
    if difference is None:
        return MISSING
    text = f"{100 * difference.mean:+.2f}"
    if difference.low is None or difference.high is None:
        return text
    return f"{text}\n[{100 * difference.low:+.2f},{100 * difference.high:+.2f}]"


def _accuracy(arm: ArmSummary) -> str:
    if arm.accuracy is None:
        return MISSING
    spread = f"\n± {100 * arm.spread:.2f}" if arm.spread is not None else ""
    return f"{100 * arm.accuracy:.2f}{spread}"


def _steps(steps: float | None) -> str:
    if steps is None:
        return MISSING
    return "not\nreached" if math.isinf(steps) else f"{steps:.0f}"


def _notes(summary: Summary, target: str) -> tuple[str, ...]:
    notes = [
        "Accuracy: of the test split after the last epoch, mean ± standard deviation over the "
        "seeds. Nothing is chosen by the test split.",
        "Against: paired differences in percentage points (same initial weights, same batches), "
        "with 95 % bootstrap intervals of their mean. plain-matched is plain at its learning "
        "rate times the mean factor of Grapes() on the fresh model: what is no better than it may "
        "only act as a larger learning rate.",
        f"Steps: optimizer steps to the end of the first epoch at {target}, which is "
        f"{TARGET_SHARE:.0%} of plain's mean accuracy; median over the seeds.",
        "Step time: median time of a training step over that of plain with the same seed, "
        "median over the seeds.",
    ]
    if summary.comparison.seeds < FEWEST_FOR_CLAIM:
        notes.append(f"With fewer than {FEWEST_FOR_CLAIM} seeds nothing is said to help or to hurt.")
    if summary.missing:
        notes.insert(
            0,
            f"Not complete: {_plural(summary.missing, 'run')} not made yet. The command that "
            "started the sweep goes on with it.",
        )
    return tuple(notes)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
