"""The table of a record as texts: the terminal and the page show the same one."""

from __future__ import annotations

from dataclasses import dataclass

from bouton.lab.bench.estimate import CONFIDENCE, Estimate
from bouton.lab.bench.record import ArmRecord, Measured, Record

MISSING = "-"
HEADERS = ("mechanism", "step time", "budget", "state", "peak")


@dataclass(frozen=True)
class Table:
    """Texts only.

    Args:
        title: what was measured, and on what.
        headers: one text for each column.
        rows: for each arm one text for each column.
        failed: name and reason of what could not be measured.
        notes: what the columns mean.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    failed: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def make_table(record: Record) -> Table:
    """Writes a record as texts. A column in which nothing stands is left out."""
    rows = [_row(arm) for arm in record.arms]
    titles = (*HEADERS, record.other)
    kept = [n for n in range(len(titles)) if n < 2 or any(row[n] != MISSING for row in rows)]
    headers = tuple(titles[n] for n in kept)
    return Table(
        title=(
            f"{record.summary}, {record.parameters:,} parameters: {record.plain_ms:.3g} ms for a plain step"
        ),
        headers=headers,
        rows=tuple(tuple(row[n] for n in kept) for row in rows),
        failed=tuple(_failed(record)),
        notes=tuple(_notes(record, headers)),
    )


def _row(arm: ArmRecord) -> tuple[str, ...]:
    budget = MISSING
    if arm.budget is not None:
        verdict = {True: ", met", False: ", not met", None: ""}[arm.met]
        budget = f"{arm.budget:.2f}{verdict}"
    measured = arm.measured
    return (
        arm.name,
        ratio_text(measured),
        budget,
        MISSING if measured.state is None else _bytes(measured.state),
        MISSING if measured.peak is None else _bytes(measured.peak),
        MISSING if arm.other is None else ratio_text(arm.other),
    )


def ratio_text(measured: Measured) -> str:
    """A ratio with its interval, or that there is none."""
    return "fails" if measured.ratio is None else estimate_text(measured.ratio)


def estimate_text(ratio: Estimate) -> str:
    """A ratio with its interval.

    Example:
        >>> estimate_text(Estimate(median=1.0321, low=1.03, high=1.0349))
        '1.032 [1.030, 1.035]'
    """
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _bytes(number: float) -> str:
    return f"{number:.1f}".replace("-0.0", "0.0")


def _failed(record: Record) -> list[tuple[str, str]]:
    found = []
    for arm in record.arms:
        for name, measured in ((arm.name, arm.measured), (f"{arm.name}, {record.other}", arm.other)):
            if measured is not None and measured.failed is not None:
                found.append((name, measured.failed))
    return found


def _notes(record: Record, headers: tuple[str, ...]) -> list[str]:
    shown = record.machine
    where = shown.get("gpu") or f"{shown.get('processor')}, {shown.get('cores')} cores"
    notes = [
        f"On {record.device} ({where}, {shown.get('memory_gib')} GiB, {shown.get('system')}), "
        f"{record.threads} thread{'' if record.threads == 1 else 's'}, {record.dtype}, "
        f"torch {shown.get('torch')}, bouton {shown.get('bouton')}, "
        f"loops {shown.get('loops', 'of torch')}.",
        "Step time: over that of a plain step of the same model beside it; median of the paired ratios "
        f"with its {CONFIDENCE:.0%} bootstrap interval. The first row is a second plain training: what "
        "the measurement itself adds.",
    ]
    if "budget" in headers:
        notes.append("Budget: met where the median is at or below it.")
    if "state" in headers:
        notes.append(
            "State, peak: bytes of tensors beyond those of plain training, for each weight that the "
            "mechanism takes; between two steps, and at the worst moment."
        )
    if any(len(arm.measured.parts) > 1 for arm in record.arms):
        notes.append(
            "Mechanisms whose events are rare: steps without an event, and steps that all have one, are "
            "timed apart; their ratios are added with the share of each."
        )
    return notes


def markdown(table: Table) -> str:
    """A table for a page: title, rows, what failed, notes."""
    lines = [f"{table.title}.", "", f"| {' | '.join(table.headers)} |", "|---" * len(table.headers) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in table.rows]
    lines += ["", *(f"- {name}: `{' '.join(reason.split())}`" for name, reason in table.failed)]
    return "\n".join([*lines, *([""] if table.failed else []), table.notes[0]])
