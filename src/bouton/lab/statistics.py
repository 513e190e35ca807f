"""What paired runs allow to say: differences with intervals, and when nothing can be said."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from bouton.lab.records import Epoch

Outcome = Literal["helps", "no difference seen", "hurts", "too few seeds to say"]

CONFIDENCE = 0.95
# With n pairs of no true difference all n have one sign with probability 2^(1-n), and then every
# bootstrap interval leaves out zero: 50 % for 2 pairs, 25 % for 3, 6 % for 5.
FEWEST_FOR_INTERVAL = 3
FEWEST_FOR_CLAIM = 5


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean paired difference.

    Args:
        values: one difference per pair, in the order of the seeds.
        mean: their mean.
        low: lower end of the 95 % interval of the mean, or None with too few pairs.
        high: upper end.
        effect: the mean over the standard deviation of the differences (Cohen's d of pairs), or
            None where they do not spread.
    """

    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    effect: float | None

    @property
    def outcome(self) -> Outcome:
        """What the interval says, where larger is better."""
        if self.low is None or self.high is None:
            return "too few seeds to say"
        if self.low <= 0 <= self.high:
            return "no difference seen"
        if len(self.values) < FEWEST_FOR_CLAIM:
            return "too few seeds to say"
        return "helps" if self.low > 0 else "hurts"


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Difference | None:
    """The mean of `values - reference` with its 95 % bootstrap interval.

    The interval is the percentile bootstrap's, widened for few pairs as in Hesterberg, *What
    teachers should know about the bootstrap* (The American Statistician 69, 2015): plain
    percentile and BCa intervals of 5 pairs cover the truth in some 80 % of cases only.

    Args:
        values: one number per seed.
        reference: the paired numbers.

    Returns:
        The difference, or None if there is no pair.

    Example:
        >>> paired_difference([0.9, 0.8], [0.8, 0.8]).outcome
        'too few seeds to say'
    """
    differences = np.subtract(values, reference)
    count = len(differences)
    if count == 0:
        return None
    mean = float(differences.mean())
    spread = float(differences.std(ddof=1)) if count > 1 else 0.0
    low: float | None
    high: float | None
    if count < FEWEST_FOR_INTERVAL:
        low = high = None
    elif np.ptp(differences) == 0:
        low = high = mean  # nothing to resample
    else:
        widened = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * math.sqrt(count / (count - 1))
        interval = stats.bootstrap(
            (differences,),
            np.mean,
            confidence_level=2 * stats.norm.cdf(widened) - 1,
            method="percentile",
            n_resamples=20_000,
            rng=np.random.default_rng(0),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return Difference(
        values=tuple(float(value) for value in differences),
        mean=mean,
        low=low,
        high=high,
        effect=mean / spread if spread > 0 else None,
    )


def steps_to_target(epochs: Sequence[Epoch], target: float) -> float:
    """Optimizer steps up to the first epoch whose test accuracy reaches the target.

    Returns:
        The steps, or infinity if no epoch reaches it.
    """
    return next((epoch.step for epoch in epochs if epoch.test_accuracy >= target), math.inf)


def median_step_seconds(epochs: Sequence[Epoch]) -> float:
    """The median over a run's epochs of their median step times."""
    return statistics.median(epoch.step_seconds for epoch in epochs)
