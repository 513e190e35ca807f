"""A comparison's findings: the one structure that the terminal's table and the page are made of."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bouton.lab.arms import Arm, Control
from bouton.lab.comparison import Comparison
from bouton.lab.records import RunResult
from bouton.lab.statistics import (
    Difference,
    median_step_seconds,
    paired_difference,
    steps_to_target,
)
from bouton.lab.verdict import control_verdict, verdict

TARGET_SHARE = 0.95


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """The findings on one arm.

    Args:
        name: the arm's name.
        control: which control it is, or None.
        runs: its runs in the order of the seeds, those not made left out.
        accuracy: mean test accuracy after the last epoch, over the finished runs, or None.
        spread: standard deviation over the finished runs, or None with fewer than two.
        vs_plain: the paired difference to plain; None for plain itself and without a pair.
        vs_matched: the paired difference to the matched control; None for the controls.
        steps: median over the finished runs of the steps to the target accuracy; infinite where
            more than half never reach it; None without a target or a finished run.
        step_time: median over the seeds of the step time over plain's, or None without a pair.
        lr: mean learning rate used, or None.
        verdict: what was seen, in words.
    """

    name: str
    control: Control
    runs: tuple[RunResult, ...]
    accuracy: float | None
    spread: float | None
    vs_plain: Difference | None
    vs_matched: Difference | None
    steps: float | None
    step_time: float | None
    lr: float | None
    verdict: str

    def count(self, status: str) -> int:
        """How many runs ended so."""
        return sum(run.status == status for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The findings of a comparison.

    Args:
        comparison: what was compared.
        target: the target accuracy, 95 % of plain's mean accuracy, or None without plain.
        arms: one summary for each arm.
        missing: how many runs are not made yet.
        environments: the different environments that the runs were made in.
    """

    comparison: Comparison
    target: float | None
    arms: tuple[ArmSummary, ...]
    missing: int
    environments: tuple[dict[str, Any], ...]


def summarise(comparison: Comparison, results: dict[tuple[str, int], RunResult]) -> Summary:
    """Makes the findings out of the runs.

    Args:
        comparison: what was compared.
        results: the runs that are there, by arm name and seed (`Comparison.results`).
    """
    by_arm = {
        arm.name: {s: results[arm.name, s] for s in range(comparison.seeds)
                   if (arm.name, s) in results}
        for arm in comparison.arms
    }  # fmt: skip
    plain = _control(comparison.arms, "plain", by_arm)
    matched = _control(comparison.arms, "matched", by_arm)
    finals = [_final(run) for run in _finished(plain).values()]
    target = TARGET_SHARE * statistics.fmean(finals) if finals else None
    environments: list[dict[str, Any]] = []
    for run in results.values():
        if run.environment not in environments:
            environments.append(run.environment)
    return Summary(
        comparison=comparison,
        target=target,
        arms=tuple(
            _summarise_arm(arm, by_arm[arm.name], plain, matched, target) for arm in comparison.arms
        ),
        missing=len(comparison.arms) * comparison.seeds - len(results),
        environments=tuple(environments),
    )


def _summarise_arm(
    arm: Arm,
    runs: dict[int, RunResult],
    plain: dict[int, RunResult],
    matched: dict[int, RunResult],
    target: float | None,
) -> ArmSummary:
    finished = _finished(runs)
    finals = [_final(run) for run in finished.values()]
    steps = [steps_to_target(run.epochs, target) for run in finished.values() if target is not None]
    vs_plain = _difference(runs, plain) if arm.control != "plain" else None
    vs_matched = _difference(runs, matched) if arm.control is None else None
    ratios = [
        median_step_seconds(finished[seed].epochs) / median_step_seconds(reference.epochs)
        for seed, reference in _finished(plain).items()
        if seed in finished
    ]
    rates = [run.lr for run in runs.values() if run.lr is not None]
    diverged = sum(run.status == "diverged" for run in runs.values())
    failed = [run for run in runs.values() if run.status == "failed"]
    if failed:
        reason = (failed[0].error or "").strip().splitlines()[-1:]
        words = f"failed with {len(failed)} of {len(runs)} seeds: {''.join(reason)}"
    elif arm.control == "plain":
        words = f"diverged with {diverged} of {len(runs)} seeds" if diverged else "the reference"
    elif arm.control == "matched":
        words = control_verdict(vs_plain, diverged=diverged, seeds=len(runs))
    else:
        words = verdict(vs_plain, vs_matched, diverged=diverged, seeds=len(runs))
        if idle := _without_event(finished.values()):
            words += f". {' and '.join(idle)} had no event in these runs: see its every="
    return ArmSummary(
        name=arm.name,
        control=arm.control,
        runs=tuple(runs.values()),
        accuracy=statistics.fmean(finals) if finals else None,
        spread=statistics.stdev(finals) if len(finals) > 1 else None,
        vs_plain=vs_plain,
        vs_matched=vs_matched,
        steps=_median(steps),
        step_time=statistics.median(ratios) if ratios else None,
        lr=statistics.fmean(rates) if rates else None,
        verdict=words,
    )


def _control(
    arms: Sequence[Arm], kind: Control, by_arm: dict[str, dict[int, RunResult]]
) -> dict[int, RunResult]:
    return next((by_arm[arm.name] for arm in arms if arm.control == kind), {})


def _finished(runs: dict[int, RunResult]) -> dict[int, RunResult]:
    return {seed: run for seed, run in runs.items() if run.status == "finished"}


def _final(run: RunResult) -> float:
    return run.epochs[-1].test_accuracy


def _without_event(runs: Iterable[RunResult]) -> list[str]:
    """Structure mechanisms that changed nothing in any run, as the runs were too short for that."""
    events: dict[str, float] = {}
    for run in runs:
        for name, weights in run.stats.items():
            found = [numbers.get("events") for numbers in weights.values()]
            counts = [count for count in found if count is not None]
            if counts:
                events[name] = events.get(name, 0) + sum(counts)
    return [name for name, count in events.items() if not count]


def _difference(runs: dict[int, RunResult], reference: dict[int, RunResult]) -> Difference | None:
    """The paired difference over the seeds that both finished."""
    ours, theirs = _finished(runs), _finished(reference)
    seeds = [seed for seed in ours if seed in theirs]
    return paired_difference(
        [_final(ours[seed]) for seed in seeds], [_final(theirs[seed]) for seed in seeds]
    )


def _median(steps: list[float]) -> float | None:
    """The median; with an even count the larger of the two, so that infinity stays itself."""
    return statistics.median_high(steps) if steps else None
