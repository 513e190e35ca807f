"""Does the relative cost of a mechanism fall, stay or rise as the model grows?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from scipy import stats

from bouton.lab.bench.estimate import CONFIDENCE
from bouton.lab.bench.nets import Decoder, perceptron
from bouton.lab.bench.record import Record
from bouton.lab.bench.table import MISSING, Table, make_table
from bouton.lab.bench.workloads import Workload, labelled, text

FEWEST = 3  # sizes for a slope with an interval
HEAD = 24  # width of an attention head
TOKENS = 64

# Width of a transformer of four layers, and its weights in millions.
TRANSFORMERS = {144: 1, 240: 3, 456: 10, 792: 30, 1440: 100}
WIDTHS = (256, 512, 1024, 2048, 4096)


def wider() -> list[Workload]:
    """MLPs with three hidden layers of 256 to 4096 units."""
    return [
        Workload(
            name=f"width {width}",
            summary=f"MLP with three hidden layers of {width}",
            build=partial(perceptron, 784, width, width, width, 10),
            draw=partial(labelled, (784,), 10),
            batch_size=64,
            optimizer="momentum",
            lr=0.01,
        )
        for width in WIDTHS
    ]


def heavier() -> list[Workload]:
    """Transformers of 1 to 100 million weights, on one short text: little work for each weight."""
    return [
        Workload(
            name=f"{millions} M",
            summary=f"decoder-only transformer of 4 layers, width {width}, sequence {TOKENS}",
            build=partial(
                Decoder, layers=4, width=width, heads=width // HEAD, sequence=TOKENS, vocabulary=256
            ),
            draw=partial(text, TOKENS, 256),
            batch_size=1,
            optimizer="adamw",
            lr=0.0001,
        )
        for width, millions in TRANSFORMERS.items()
    ]


@dataclass(frozen=True, kw_only=True)
class Trend:
    """How a ratio of step times goes with size.

    Args:
        slope: change of the ratio for ten times as many parameters.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    slope: float
    low: float
    high: float

    @property
    def verdict(self) -> Literal["falls", "no rise seen", "rises"]:
        """What the interval says."""
        if self.high < 0:
            return "falls"
        return "rises" if self.low > 0 else "no rise seen"


def trend(sizes: Sequence[float], ratios: Sequence[float]) -> Trend:
    """The slope of ratios over the logarithm of sizes, by least squares.

    Its interval is Student's: what the line leaves over counts as noise, be it that or a curve.

    Args:
        sizes: numbers of parameters, of three models or more.
        ratios: of step times, for each.

    Example:
        >>> trend([1e6, 1e7, 1e8], [1.3, 1.2, 1.1]).verdict
        'falls'
    """
    fit = stats.linregress([math.log10(size) for size in sizes], ratios)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(sizes) - 2) * fit.stderr)
    return Trend(slope=float(fit.slope), low=float(fit.slope) - reach, high=float(fit.slope) + reach)


def growth_table(records: Sequence[Record]) -> Table:
    """The ratios of all sizes beside each other, and the trend of each mechanism.

    Args:
        records: of one kind of model with the same arms, from the smallest to the largest.
    """
    names = [arm.name for arm in records[0].arms]
    plain = ("plain step, ms", *(f"{record.plain_ms:.3g}" for record in records), MISSING, MISSING)
    first = make_table(records[0])
    return Table(
        title=(
            f"{records[0].summary} ({records[0].parameters:,} parameters) to "
            f"{records[-1].summary} ({records[-1].parameters:,})"
        ),
        headers=("mechanism", *(record.workload for record in records), "slope", "as it grows"),
        rows=(plain, *(_row(name, records) for name in names)),
        failed=first.failed,
        notes=(
            first.notes[0],
            "Slope: change of the ratio for ten times as many parameters, by least squares, with its "
            f"{CONFIDENCE:.0%} interval.",
        ),
    )


def _row(name: str, records: Sequence[Record]) -> tuple[str, ...]:
    found = {
        record.parameters: arm.measured.ratio.median
        for record in records
        for arm in record.arms
        if arm.name == name and arm.measured.ratio is not None
    }
    ratios = [f"{found[r.parameters]:.3f}" if r.parameters in found else "fails" for r in records]
    if len(found) < FEWEST:
        return (name, *ratios, MISSING, MISSING)
    line = trend(list(found), list(found.values()))
    return (name, *ratios, f"{line.slope:+.3f} [{line.low:+.3f}, {line.high:+.3f}]", line.verdict)
