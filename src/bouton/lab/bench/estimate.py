"""The median of paired ratios, and how well it is known."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A ratio of step times.

    Args:
        median: attached over plain; 1 costs nothing.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    median: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Of the interval."""
        return self.high - self.low


def estimate(samples: Sequence[Sequence[float]], weights: Sequence[float] = (1.0,)) -> Estimate:
    """The weighted sum of medians, with its 95 % percentile-bootstrap interval.

    Args:
        samples: for each part its paired ratios, two or more.
        weights: of the parts; they add up to 1.

    Example:
        >>> estimate([[1.1, 1.2, 1.3]]).median
        1.2
        >>> estimate([[1.0, 1.0], [3.0, 3.0]], [0.999, 0.001])
        Estimate(median=1.002, low=1.002, high=1.002)
    """

    def statistic(*parts: Any, axis: int) -> Any:
        return sum(weight * np.median(part, axis=axis) for weight, part in zip(weights, parts, strict=True))

    arrays = tuple(np.asarray(sample) for sample in samples)
    with warnings.catch_warnings():
        # samples without any spread, which scipy warns of, have an interval without width
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            arrays,
            statistic,
            confidence_level=CONFIDENCE,
            method="percentile",
            n_resamples=RESAMPLES,
            rng=np.random.default_rng(0),
        ).confidence_interval
    return Estimate(
        median=round(float(statistic(*arrays, axis=-1)), 5),
        low=round(float(interval.low), 5),
        high=round(float(interval.high), 5),
    )
